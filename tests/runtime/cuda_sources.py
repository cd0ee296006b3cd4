"""CUDA kernels whose machine code is known well enough to count it by hand. Text pieces, put together per test."""

from __future__ import annotations

HELPERS = r"""
typedef unsigned u32;
typedef unsigned long long u64;
__device__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void ldmatrix(u32* r, const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(from)) : "memory");
}
__device__ void mma(float* c, const u32* a, const u32* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
"""

# One warp, three stages in flight. A trip is 2 cp.async under a predicate, 2 ldmatrix, 2 mma, 3 waits and barriers.
PIPELINED = (
    HELPERS
    + r"""
extern "C" __global__ __launch_bounds__(32) void gemm(const uint4* w, const uint4* x, float* y, int trips) {
  __shared__ uint4 s[4][64];
  float c[2][4] = {};
  for (int i = 0; i < 3; i++) {
    copy16(&s[i][threadIdx.x], w + threadIdx.x + 32*i);
    asm volatile("cp.async.commit_group;");
  }
  #pragma unroll 1
  for (int k = 0; k < trips; k++) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
    __syncthreads();
    if (k + 3 < trips) {
      copy16(&s[(k+3)&3][threadIdx.x], w + threadIdx.x + 32*(k+3));
      copy16(&s[(k+3)&3][threadIdx.x+32], x + 32*(k+3));
    }
    asm volatile("cp.async.commit_group;");
    u32 a[4], b[4];
    ldmatrix(a, &s[k&3][threadIdx.x]);
    ldmatrix(b, &s[k&3][threadIdx.x+32]);
    mma(c[0], a, b); mma(c[1], a, b + 2);
  }
  for (int i = 0; i < 8; i++) y[threadIdx.x*8 + i] = c[i/4][i%4];
}
"""
)

# As above, but the copies stand behind a branch (the barrier in the block keeps it one), and tiles are looped over:
# the loop over k (4 mma) lies in one over tiles, whose other work (8 mma in all) is done less often.
GUARDED = (
    HELPERS
    + r"""
extern "C" __global__ __launch_bounds__(128) void gemm(const uint4* w, float* y, int trips, int tiles) {
  __shared__ uint4 s[1024];
  #pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    float c[4][4] = {};
    u32 a[4], b[4];
    #pragma unroll 1
    for (int k = 0; k < trips; k++) {
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      __syncthreads();
      if (k + 3 < trips) {
        __syncthreads();
        for (int i = 0; i < 4; i++) copy16(&s[(k*128+i*128+threadIdx.x)&1023], w + threadIdx.x + 128*(k+i));
      }
      asm volatile("cp.async.commit_group;");
      ldmatrix(a, &s[(k*32+threadIdx.x)&1023]);
      ldmatrix(b, &s[(k*64+threadIdx.x)&1023]);
      for (int n = 0; n < 4; n++) mma(c[n], a, b + n/2*2);
    }
    mma(c[0], a, b); mma(c[1], a, b);
    for (int i = 0; i < 16; i++) y[(tile*128+threadIdx.x)*16 + i] = c[i/4][i%4];
  }
}
"""
)

# No loop: 8 steps of 1 ldmatrix and 2 mma.
UNROLLED = (
    HELPERS
    + r"""
extern "C" __global__ __launch_bounds__(32) void gemm(const uint4* w, float* y) {
  __shared__ uint4 s[256];
  float c[2][4] = {};
  #pragma unroll
  for (int i = 0; i < 8; i++) copy16(&s[32*i + threadIdx.x], w + threadIdx.x + 32*i);
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  u32 b[4];
  ldmatrix(b, &s[threadIdx.x ^ 1]);
  #pragma unroll
  for (int k = 0; k < 8; k++) {
    u32 a[4];
    ldmatrix(a, &s[32*k + threadIdx.x]);
    mma(c[0], a, b); mma(c[1], a, b + 2);
  }
  for (int i = 0; i < 8; i++) y[threadIdx.x*8 + i] = c[i/4][i%4];
}
"""
)

# Hopper: thread 0 starts a bulk copy, all wait for its mbarrier in a spinning loop, 4 wgmma with operand A in registers.
WGMMA = (
    HELPERS
    + r"""
__device__ void wgmma(float* c, const u32* a, u64 b) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, 0; }"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
extern "C" __global__ __launch_bounds__(128)
void gemm(const char* w, const uint4* a, float* y, int trips, u64 descriptor) {
  __shared__ __align__(128) char s[4][4096];
  __shared__ u64 full;
  float c[4] = {};
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(shared_address(&full)) : "memory");
  __syncthreads();
  uint4 f = a[threadIdx.x];
  u32 r[4] = {f.x, f.y, f.z, f.w};
  #pragma unroll 1
  for (int k = 0; k < trips; k++) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 4096;" :: "r"(shared_address(&full)) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 4096, [%2];"
        :: "r"(shared_address(s[k&3])), "l"(w + 4096*k), "r"(shared_address(&full)) : "memory");
    }
    asm volatile("{ .reg .pred p;\nwait:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra wait; }"
      :: "r"(shared_address(&full)), "r"(k & 1) : "memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int i = 0; i < 4; i++) wgmma(c, r, descriptor + 32*i);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  for (int i = 0; i < 4; i++) y[threadIdx.x*4 + i] = c[i];
}
"""
)

# No tensor cores: per trip one 16-byte load and 4 fused multiply-adds.
DOT = r"""
extern "C" __global__ void dot(const float4* x, float* y, int n) {
  float sum = 0;
  #pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 128) {
    float4 v = x[i];
    sum = fmaf(v.x, v.x, sum); sum = fmaf(v.y, v.y, sum); sum = fmaf(v.z, v.z, sum); sum = fmaf(v.w, v.w, sum);
  }
  y[threadIdx.x] = sum;
}
"""

# 64 live values in a loop; LIMIT bounds the registers, LOCAL adds an array that is indexed at run time.
REGISTERS = r"""
extern "C" __global__ __launch_bounds__(LIMIT) void many(const float* x, float* y, int n, int at) {
  __shared__ float s[256];
  float a[64];
#ifdef LOCAL
  int local[40];
  for (int i = 0; i < 40; i++) local[i] = x[i];
  y[1 << 20] = local[at];
#endif
  #pragma unroll
  for (int i = 0; i < 64; i++) a[i] = x[threadIdx.x + i*n];
  s[threadIdx.x & 255] = a[3];
  __syncthreads();
  #pragma unroll 1
  for (int j = 0; j < n; j++) {
    #pragma unroll
    for (int i = 0; i < 64; i++) a[i] = a[i]*a[(i+1)%64] + s[j];
  }
  #pragma unroll
  for (int i = 0; i < 64; i++) y[threadIdx.x + i*n] = a[i];
}
extern "C" __global__ void few(double* x) { extern __shared__ int s[]; s[threadIdx.x] = 1; x[threadIdx.x] *= 2; }
"""
