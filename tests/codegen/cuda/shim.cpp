// What shim.h declares: the machine that runs a grid, and the meaning of every PTX instruction.
#define SHIM_MACHINE
#include "shim.h"
#include <ucontext.h>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

// --- machine -----------------------------------------------------------------------------------------------------------

static const size_t STACK = 1 << 18, MOST_SHARED = 1 << 18;
alignas(1024) u8 smem_bytes[MOST_SHARED];
Triple blockIdx;
static u32 shared_size;
static std::string failure, printed;
static std::map<uintptr_t, size_t> buffers;

struct Copy { u32 to; const void* from; u32 size, bytes; };
struct Fiber {
  ucontext_t context;
  Triple thread;
  bool done = false, waiting = false;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
struct Warp { void* args[32]; u32 arrived = 0; u64 turn = 0; };
static std::vector<Fiber> fibers;
static std::vector<std::unique_ptr<u8[]>> stacks;  // kept from block to block
static std::vector<Warp> warps;
static Fiber* self;
static ucontext_t scheduler;
static u64 progress;
static void (*entry)(const u64*);
static const u64* arguments;

static void fail(const std::string& what) {
  if (failure.empty()) {
    char where[96];
    snprintf(where, sizeof where, " (block %u %u %u, thread %u)", blockIdx.x, blockIdx.y, blockIdx.z, self ? self->thread.x : 0);
    failure = what + where;
  }
}
static void pause_fiber() { swapcontext(&self->context, &scheduler); }
[[noreturn]] static void stop_fiber() { self->done = true; ++progress; while (true) pause_fiber(); }
static void run_fiber() { entry(arguments); stop_fiber(); }
const Triple* current_thread() { return &self->thread; }
void __syncthreads() { self->waiting = true; ++progress; pause_fiber(); }
void __syncwarp() {}
void __trap() { fail("trap"); stop_fiber(); }

static void land(const Copy& c);

static void run_block(u32 threads, u32 shared, bool backwards) {
  shared_size = shared;
  memset(smem_bytes, 0xA5, sizeof smem_bytes);
  fibers.assign(threads, Fiber());
  warps.assign((threads + 31) / 32, Warp());
  while (stacks.size() < threads) stacks.emplace_back(new u8[STACK]);
  for (u32 t = 0; t < threads; ++t) {
    Fiber& f = fibers[t];
    f.thread = {t, 0, 0};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[t].get();
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, run_fiber, 0);
  }
  while (true) {
    u64 before = progress;
    u32 finished = 0, waiting = 0;
    for (u32 i = 0; i < threads; ++i) {
      Fiber& f = fibers[backwards ? threads - 1 - i : i];
      if (!f.done && !f.waiting) { self = &f; swapcontext(&scheduler, &f.context); }
      finished += f.done;
      waiting += f.waiting;
    }
    if (finished == threads) return;
    if (finished + waiting == threads) {
      if (finished) { fail("a thread ended before a barrier that others wait at"); return; }
      for (Fiber& f : fibers) f.waiting = false;
      ++progress;
    }
    if (progress == before) { fail("threads of a warp wait for one another"); return; }
  }
}

template <class T> static void together(T& mine, void (*compute)(T** lanes)) {
  Warp& w = warps[self->thread.x / 32];
  u64 turn = w.turn;
  w.args[self->thread.x % 32] = &mine;
  if (++w.arrived == 32) {
    compute(reinterpret_cast<T**>(w.args));
    w.arrived = 0;
    ++w.turn;
    ++progress;
  } else {
    while (w.turn == turn) pause_fiber();
  }
}

// --- bits and numbers --------------------------------------------------------------------------------------------------

template <class T, class S> static T bit_cast(S s) { T t; static_assert(sizeof t == sizeof s, ""); memcpy(&t, &s, sizeof t); return t; }
u32 __float_as_uint(float x) { return bit_cast<u32>(x); }
float __uint_as_float(u32 x) { return bit_cast<float>(x); }
i64 __double_as_longlong(double x) { return bit_cast<i64>(x); }
double __longlong_as_double(i64 x) { return bit_cast<double>(x); }
static u32 prmt(u32 a, u32 b, u32 s) {
  u64 bytes = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) {
    u32 pick = s >> (4 * i) & 15, byte = bytes >> (8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}
u32 __byte_perm(u32 a, u32 b, u32 s) { if (s & 0x8888) fail("__byte_perm takes 3 bits of each nibble"); return prmt(a, b, s); }
u32 ptx_and_or(u32 a, u32 b, u32 c) { return (a & b) | c; }
u32 ptx_mad(u32 a, u32 b, u32 c) { return a * b + c; }
u32 ptx_and_xor(u32 a, u32 b, u32 c) { return (a & b) ^ c; }
u32 ptx_prmt(u32 a, u32 b, u32 s) { return prmt(a, b, s); }
u32 __funnelshift_r(u32 lo, u32 hi, u32 s) { return (u32)(((u64)hi << 32 | lo) >> (s & 31)); }
float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
double rsqrt(double x) { return 1.0 / sqrt(x); }

template <class I> static I saturate(double x, double low, double high) {  // high is one past the greatest
  return x != x ? I(0) : x < low ? (I)low : x >= high ? (I)~(I)0 ^ (low < 0 ? (I)low : I(0)) : (I)x;
}
i32 __float2int_rz(float x) { return saturate<i32>(x, -0x1p31, 0x1p31); }
u32 __float2uint_rz(float x) { return saturate<u32>(x < 0 ? 0 : x, 0, 0x1p32); }
i64 __float2ll_rz(float x) { return x != x ? INT64_MIN : saturate<i64>(x, -0x1p63, 0x1p63); }
u64 __float2ull_rz(float x) { return x != x ? 1ull << 63 : saturate<u64>(x < 0 ? 0 : x, 0, 0x1p64); }
i32 __double2int_rz(double x) { return x != x ? INT32_MIN : saturate<i32>(x, -0x1p31, 0x1p31); }
u32 __double2uint_rz(double x) { return x != x ? 1u << 31 : saturate<u32>(x < 0 ? 0 : x, 0, 0x1p32); }
i64 __double2ll_rz(double x) { return x != x ? INT64_MIN : saturate<i64>(x, -0x1p63, 0x1p63); }
u64 __double2ull_rz(double x) { return x != x ? 1ull << 63 : saturate<u64>(x < 0 ? 0 : x, 0, 0x1p64); }
static float toward_zero(long double x) {
  float f = (float)x;
  return std::isfinite(x) && fabsl((long double)f) > fabsl(x) ? nextafterf(f, 0) : f;
}
float __double2float_rz(double x) { return toward_zero(x); }
float __int2float_rz(i32 x) { return toward_zero(x); }
float __uint2float_rz(u32 x) { return toward_zero(x); }
float __ll2float_rz(i64 x) { return toward_zero(x); }
float __ull2float_rz(u64 x) { return toward_zero(x); }

static double from_f16(u32 x) { return (double)bit_cast<_Float16>((u16)x); }
static u32 to_f16(long double x) { return bit_cast<u16>((_Float16)x); }
static double from_bf16(u32 x) { return bit_cast<float>(x << 16); }
static u32 to_bf16(long double x) {
  // Truncate to f32 with a sticky bit, then round to nearest even.
  float f = toward_zero(x);
  u32 u = bit_cast<u32>(f);
  if (f != f) return 0x7fff;
  if ((long double)f != x) u |= 1;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
template <class F> static u32 halves(u32 a, u32 b, u32 c, double (*from)(u32), u32 (*to)(long double), F f) {
  u32 low = to(f((long double)from(a & 0xffff), (long double)from(b & 0xffff), (long double)from(c & 0xffff)));
  u32 high = to(f((long double)from(a >> 16), (long double)from(b >> 16), (long double)from(c >> 16)));
  return (low & 0xffff) | high << 16;
}
#define HALF_OP(name, kind, text) \
  u32 ptx_##name##_##kind##x2(u32 a, u32 b) { \
    return halves(a, b, 0u, from_##kind, to_##kind, [](long double x, long double y, long double) -> long double { return text; }); }
HALF_OP(add, f16, x + y)
HALF_OP(sub, f16, x - y)
HALF_OP(mul, f16, x * y)
HALF_OP(min, f16, x != x ? x : y != y ? y : x < y ? x : y)
HALF_OP(max, f16, x != x ? x : y != y ? y : x > y ? x : y)
HALF_OP(min, bf16, x != x ? x : y != y ? y : x < y ? x : y)
HALF_OP(max, bf16, x != x ? x : y != y ? y : x > y ? x : y)
u32 ptx_fma_f16x2(u32 a, u32 b, u32 c) { return halves(a, b, c, from_f16, to_f16, [](long double x, long double y, long double z) { return x * y + z; }); }
u32 ptx_fma_bf16x2(u32 a, u32 b, u32 c) { return halves(a, b, c, from_bf16, to_bf16, [](long double x, long double y, long double z) { return x * y + z; }); }
float ptx_min_f32(float x, float y) { return x != x ? x : y != y ? y : x < y ? x : y; }
float ptx_max_f32(float x, float y) { return x != x ? x : y != y ? y : x > y ? x : y; }
u32 ptx_cvt_f16x2_f32(float a, float b) { return to_f16(a) << 16 | to_f16(b); }
u32 ptx_cvt_bf16x2_f32(float a, float b) { return to_bf16(a) << 16 | to_bf16(b); }
float ptx_cvt_f32_f16_low(u32 a) { return (float)from_f16(a & 0xffff); }
float ptx_cvt_f32_f16_high(u32 a) { return (float)from_f16(a >> 16); }
u32 ptx_cvt_f16_f32(float a) { return to_f16(a); }
u32 ptx_cvt_f16_f64(double a) { return to_f16(a); }
u32 ptx_cvt_f16_s32(i32 a) { return to_f16(a); }
u32 ptx_cvt_f16_u32(u32 a) { return to_f16(a); }
u32 ptx_cvt_f16_s64(i64 a) { return to_f16(a); }
u32 ptx_cvt_f16_u64(u64 a) { return to_f16(a); }
u32 ptx_cvt_bf16_f32(float a) { return to_bf16(a); }
static u32 e4m3_to_f16(u32 x) {  // OFP8: exponent bias 7, 0x7f is NaN
  u32 e = x >> 3 & 15, m = x & 7;
  if ((x & 0x7f) == 0x7f) return 0x7fff;
  double v = e ? ldexp(8 + m, (int)e - 10) : ldexp(m, -9);
  return to_f16(x & 0x80 ? -v : v);
}
u32 ptx_cvt_f16x2_e4m3x2_low(u32 a) { return e4m3_to_f16(a & 255) | e4m3_to_f16(a >> 8 & 255) << 16; }
u32 ptx_cvt_f16x2_e4m3x2_high(u32 a) { return ptx_cvt_f16x2_e4m3x2_low(a >> 16); }
u32 ptx_cvt_f16x2_e5m2x2_low(u32 a) { return (a & 255) << 8 | (a >> 8 & 255) << 24; }
u32 ptx_cvt_f16x2_e5m2x2_high(u32 a) { return ptx_cvt_f16x2_e5m2x2_low(a >> 16); }

// --- memory ------------------------------------------------------------------------------------------------------------

static bool inside(const void* p, size_t n) {
  uintptr_t a = (uintptr_t)p;
  if (a % n) { fail("a global access of " + std::to_string(n) + " bytes is misaligned"); return false; }
  auto after = buffers.upper_bound(a);
  if (after != buffers.begin()) {
    auto found = std::prev(after);
    if (a + n <= found->first + found->second) return true;
  }
  fail("a global access of " + std::to_string(n) + " bytes is out of bounds");
  return false;
}
static bool inside_shared(u32 a, u32 n) {
  if (a % n) { fail("a shared access of " + std::to_string(n) + " bytes is misaligned"); return false; }
  if (a + n > shared_size) { fail("a shared access of " + std::to_string(n) + " bytes is out of bounds"); return false; }
  return true;
}
#define MEMORY(bits) \
  void ptx_ld_global_b##bits(u32* d, const void* p) { if (bits < 32) d[0] = 0; if (inside(p, bits / 8)) memcpy(d, p, bits / 8); } \
  void ptx_ld_global_b##bits##_if(u32* d, const void* p, bool c) { if (c) ptx_ld_global_b##bits(d, p); } \
  void ptx_st_global_b##bits(void* p, const u32* s) { if (inside(p, bits / 8)) memcpy(p, s, bits / 8); } \
  void ptx_st_global_b##bits##_if(void* p, const u32* s, bool c) { if (c) ptx_st_global_b##bits(p, s); } \
  void ptx_ld_shared_b##bits(u32* d, u32 a) { if (bits < 32) d[0] = 0; if (inside_shared(a, bits / 8)) memcpy(d, smem_bytes + a, bits / 8); } \
  void ptx_st_shared_b##bits(u32 a, const u32* s) { if (inside_shared(a, bits / 8)) memcpy(smem_bytes + a, s, bits / 8); } \
  void ptx_st_shared_b##bits##_if(u32 a, const u32* s, bool c) { if (c) ptx_st_shared_b##bits(a, s); }
MEMORY(8)
MEMORY(16)
MEMORY(32)
MEMORY(64)
MEMORY(128)
u32 ptx_shared_address(const void* p) { return (u32)((const u8*)p - smem_bytes); }

static void land(const Copy& c) {
  if (!inside_shared(c.to, c.size)) return;
  if (c.bytes && !inside(c.from, c.size)) return;
  memset(smem_bytes + c.to, 0, c.size);
  memcpy(smem_bytes + c.to, c.from, c.bytes);
}
#define ASYNC(size) void ptx_cp_async_##size(u32 a, const void* p, u32 bytes) { if (bytes) inside(p, size); self->open.push_back({a, p, size, bytes}); }
ASYNC(4)
ASYNC(8)
ASYNC(16)
void ptx_cp_async_commit() { self->groups.push_back(self->open); self->open.clear(); }
static void wait_group(size_t pending) {
  while (self->groups.size() > pending) {
    for (const Copy& c : self->groups.front()) land(c);
    self->groups.erase(self->groups.begin());
  }
}
#define WAIT(n) void ptx_cp_async_wait_##n() { wait_group(n); }
WAIT(0) WAIT(1) WAIT(2) WAIT(3) WAIT(4) WAIT(5) WAIT(6) WAIT(7)

template <class T> static void add_to(void* p, T a) { if (inside(p, sizeof a)) { T t; memcpy(&t, p, sizeof t); t += a; memcpy(p, &t, sizeof t); } }
void ptx_red_add_f32(void* p, float a) { add_to(p, a); }
void ptx_red_add_f64(void* p, double a) { add_to(p, a); }
void ptx_red_add_u32(void* p, u32 a) { add_to(p, a); }
void ptx_red_add_u64(void* p, u64 a) { add_to(p, a); }
void ptx_red_add_f16(void* p, u32 a) { if (inside(p, 2)) { u16 t; memcpy(&t, p, 2); t = to_f16(from_f16(t) + from_f16(a & 0xffff)); memcpy(p, &t, 2); } }
void ptx_red_add_bf16(void* p, u32 a) { if (inside(p, 2)) { u16 t; memcpy(&t, p, 2); t = to_bf16(from_bf16(t) + from_bf16(a & 0xffff)); memcpy(p, &t, 2); } }
u32 ptx_cas_b16(void* p, u32 a, u32 b) {
  u16 old = 0, next = b;
  if (inside(p, 2)) { memcpy(&old, p, 2); if (old == (u16)a) memcpy(p, &next, 2); }
  return old;
}
void ptx_red_and_b32(void* p, u32 a) { if (inside(p, 4)) *(u32*)p &= a; }
void ptx_red_or_b32(void* p, u32 a) { if (inside(p, 4)) *(u32*)p |= a; }

// --- warps -------------------------------------------------------------------------------------------------------------

struct Shuffle { u32 value, lane, result; };
static u32 shuffle(u32 value, u32 lane) {
  Shuffle mine{value, lane, 0};
  together<Shuffle>(mine, [](Shuffle** lanes) { for (int i = 0; i < 32; ++i) lanes[i]->result = lanes[lanes[i]->lane]->value; });
  return mine.result;
}
u32 __shfl_sync(u32 mask, u32 value, u32 lane) { if (mask != 0xffffffffu) fail("mask of a shuffle"); return shuffle(value, lane & 31); }
u32 __shfl_xor_sync(u32 mask, u32 value, u32 x) { return __shfl_sync(mask, value, (self->thread.x & 31) ^ x); }

struct MatrixLoad { u32 address; u32* d; u32 count; bool trans; };
static void load_matrices(MatrixLoad** lanes) {
  for (u32 j = 0; j < lanes[0]->count; ++j) {
    u16 m[8][8] = {};
    for (int r = 0; r < 8; ++r) if (inside_shared(lanes[8 * j + r]->address, 16)) memcpy(m[r], smem_bytes + lanes[8 * j + r]->address, 16);
    for (int l = 0; l < 32; ++l) {
      int r = l / 4, c = 2 * (l % 4);
      lanes[l]->d[j] = lanes[l]->trans ? m[c][r] | (u32)m[c + 1][r] << 16 : m[r][c] | (u32)m[r][c + 1] << 16;
    }
  }
}
#define LDMATRIX(n, suffix, t) void ptx_ldmatrix_x##n##suffix(u32* d, u32 a) { MatrixLoad mine{a, d, n, t}; together<MatrixLoad>(mine, load_matrices); }
LDMATRIX(1, , false)
LDMATRIX(2, , false)
LDMATRIX(4, , false)
LDMATRIX(1, _trans, true)
LDMATRIX(2, _trans, true)
LDMATRIX(4, _trans, true)

struct Product { u32* d; const u32 *a, *b; };
static double half_of(const u32* words, int i, double (*from)(u32)) { return from(words[i / 2] >> (16 * (i % 2)) & 0xffff); }
static double byte_of(const u32* words, int i) { return (int8_t)(words[i / 4] >> (8 * (i % 4)) & 255); }
// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k32": g = lane / 4, t = lane % 4.
template <int K, class Read> static void gather(Product** lanes, double (&A)[16][K], double (&B)[K][8], Read read) {
  const int v = K / 8;  // elements of a register
  for (int l = 0; l < 32; ++l) {
    int g = l / 4, t = l % 4;
    for (int i = 0; i < 4 * v; ++i) A[g + (i / v % 2 ? 8 : 0)][t * v + i % v + (i / (2 * v) ? K / 2 : 0)] = read(lanes[l]->a, i);
    for (int i = 0; i < 2 * v; ++i) B[t * v + i % v + (i / v ? K / 2 : 0)][g] = read(lanes[l]->b, i);
  }
}
template <int K, class Read, class Get, class Put> static void multiply(Product** lanes, Read read, Get get, Put put) {
  double A[16][K], B[K][8];
  gather<K>(lanes, A, B, read);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      int row = l / 4 + (i / 2 ? 8 : 0), col = 2 * (l % 4) + i % 2;
      double sum = get(lanes[l]->d, i);
      for (int k = 0; k < K; ++k) sum += A[row][k] * B[k][col];
      put(lanes[l]->d, i, sum);
    }
}
static double read_f16(const u32* w, int i) { return half_of(w, i, from_f16); }
static double read_bf16(const u32* w, int i) { return half_of(w, i, from_bf16); }
static double get_f32(const u32* d, int i) { return bit_cast<float>(d[i]); }
static void put_f32(u32* d, int i, double x) { d[i] = bit_cast<u32>((float)x); }
static double get_i32(const u32* d, int i) { return (i32)d[i]; }
static void put_i32(u32* d, int i, double x) { d[i] = (u32)(i64)x; }
static void put_f16(u32* d, int i, double x) { int s = 16 * (i % 2); d[i / 2] = (d[i / 2] & ~(0xffffu << s)) | to_f16(x) << s; }
#define MMA(name, k, read, get, put) \
  void ptx_mma_##name(u32* d, const u32* a, const u32* b) { \
    Product mine{d, a, b}; together<Product>(mine, [](Product** lanes) { multiply<k>(lanes, read, get, put); }); }
MMA(m16n8k16_f32_f16, 16, read_f16, get_f32, put_f32)
MMA(m16n8k16_f16_f16, 16, read_f16, read_f16, put_f16)
MMA(m16n8k16_f32_bf16, 16, read_bf16, get_f32, put_f32)
MMA(m16n8k32_i32_i8, 32, byte_of, get_i32, put_i32)

// --- entry -------------------------------------------------------------------------------------------------------------

int print_text(const char* format, ...) {
  char line[4096];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  printed += line;
  return n;
}

void run_grid(const u32* grid, u32 threads, u32 shared, bool backwards, void (*kernel)(const u64*), const u64* slots) {
  failure.clear();
  printed.clear();
  entry = kernel;
  arguments = slots;
  for (u32 z = 0; z < grid[2]; ++z)
    for (u32 y = 0; y < grid[1]; ++y)
      for (u32 x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        if (failure.empty()) run_block(threads, shared, backwards);
      }
}
extern "C" void add_buffer(u64 address, u64 size) { if (size) buffers[address] = size; }
extern "C" void forget_buffers() { buffers.clear(); }
extern "C" const char* get_failure() { return failure.c_str(); }
extern "C" const char* get_printed() { return printed.c_str(); }
