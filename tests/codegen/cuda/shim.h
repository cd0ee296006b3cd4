// Runs generated CUDA C++ on a CPU: every thread of a block is a fiber, every PTX instruction a function written from the
// PTX ISA manual. Asynchronous copies land at their wait, shared memory starts as garbage, and out-of-bounds or
// misaligned accesses, deadlocks and warps that part before a collective instruction are errors.
//
// Kernels include this file, which includes nothing: a kernel compiles in a twentieth of a second. The functions are
// in shim.cpp, compiled once.
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using pointer = u8*;
struct Triple { u32 x, y, z; };

#ifndef SHIM_MACHINE
#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (*current_thread())
#define printf print_text
extern "C" {
void* memcpy(void*, const void*, unsigned long);
#define UNARY(name) double name(double); float name##f(float);
UNARY(exp) UNARY(exp2) UNARY(log) UNARY(log2) UNARY(sqrt) UNARY(sin) UNARY(cos) UNARY(tanh) UNARY(erf)
UNARY(floor) UNARY(ceil) UNARY(rint) UNARY(fabs)
double fmin(double, double);
double fmax(double, double);
float fminf(float, float);
float fmaxf(float, float);
}
#endif

// --- machine -----------------------------------------------------------------------------------------------------------

extern u8 smem_bytes[];
extern Triple blockIdx;
const Triple* current_thread();
void __syncthreads();
void __syncwarp();
void __trap();
int print_text(const char* format, ...);
void run_grid(const u32* grid, u32 threads, u32 shared, bool backwards, void (*kernel)(const u64* slots), const u64* slots);

// --- bits and numbers --------------------------------------------------------------------------------------------------

#define EXTREME(T) \
  inline T min(T a, T b) { return a < b ? a : b; } \
  inline T max(T a, T b) { return a > b ? a : b; }
EXTREME(i64) EXTREME(u64) EXTREME(u32) EXTREME(i32)

u32 __float_as_uint(float x);
float __uint_as_float(u32 x);
i64 __double_as_longlong(double x);
double __longlong_as_double(i64 x);
u32 __byte_perm(u32 a, u32 b, u32 s);
u32 ptx_and_or(u32 a, u32 b, u32 c);
u32 ptx_mad(u32 a, u32 b, u32 c);
u32 ptx_and_xor(u32 a, u32 b, u32 c);
u32 ptx_prmt(u32 a, u32 b, u32 s);
u32 __funnelshift_r(u32 lo, u32 hi, u32 s);
float __fmaf_rn(float a, float b, float c);
double __fma_rn(double a, double b, double c);
float rsqrtf(float x);
double rsqrt(double x);
i32 __float2int_rz(float x);
u32 __float2uint_rz(float x);
i64 __float2ll_rz(float x);
u64 __float2ull_rz(float x);
i32 __double2int_rz(double x);
u32 __double2uint_rz(double x);
i64 __double2ll_rz(double x);
u64 __double2ull_rz(double x);
float __double2float_rz(double x);
float __int2float_rz(i32 x);
float __uint2float_rz(u32 x);
float __ll2float_rz(i64 x);
float __ull2float_rz(u64 x);
u32 ptx_fma_f16x2(u32 a, u32 b, u32 c);
u32 ptx_fma_bf16x2(u32 a, u32 b, u32 c);
float ptx_min_f32(float x, float y);
float ptx_max_f32(float x, float y);
u32 ptx_cvt_f16x2_f32(float a, float b);
u32 ptx_cvt_bf16x2_f32(float a, float b);
float ptx_cvt_f32_f16_low(u32 a);
float ptx_cvt_f32_f16_high(u32 a);
u32 ptx_cvt_f16_f32(float a);
u32 ptx_cvt_f16_f64(double a);
u32 ptx_cvt_f16_s32(i32 a);
u32 ptx_cvt_f16_u32(u32 a);
u32 ptx_cvt_f16_s64(i64 a);
u32 ptx_cvt_f16_u64(u64 a);
u32 ptx_cvt_bf16_f32(float a);
u32 ptx_cvt_f16x2_e4m3x2_low(u32 a);
u32 ptx_cvt_f16x2_e4m3x2_high(u32 a);
u32 ptx_cvt_f16x2_e5m2x2_low(u32 a);
u32 ptx_cvt_f16x2_e5m2x2_high(u32 a);
u32 ptx_add_f16x2(u32 a, u32 b);
u32 ptx_sub_f16x2(u32 a, u32 b);
u32 ptx_mul_f16x2(u32 a, u32 b);
u32 ptx_min_f16x2(u32 a, u32 b);
u32 ptx_max_f16x2(u32 a, u32 b);
u32 ptx_min_bf16x2(u32 a, u32 b);
u32 ptx_max_bf16x2(u32 a, u32 b);

// --- memory ------------------------------------------------------------------------------------------------------------

#define DECLARE_MEMORY(bits) \
  void ptx_ld_global_b##bits(u32* d, const void* p); \
  void ptx_ld_global_b##bits##_if(u32* d, const void* p, bool c); \
  void ptx_st_global_b##bits(void* p, const u32* s); \
  void ptx_st_global_b##bits##_if(void* p, const u32* s, bool c); \
  void ptx_ld_shared_b##bits(u32* d, u32 a); \
  void ptx_st_shared_b##bits(u32 a, const u32* s); \
  void ptx_st_shared_b##bits##_if(u32 a, const u32* s, bool c);
DECLARE_MEMORY(8) DECLARE_MEMORY(16) DECLARE_MEMORY(32) DECLARE_MEMORY(64) DECLARE_MEMORY(128)
#define DECLARE_ASYNC(size) void ptx_cp_async_##size(u32 a, const void* p, u32 bytes);
DECLARE_ASYNC(4) DECLARE_ASYNC(8) DECLARE_ASYNC(16)
#define DECLARE_WAIT(n) void ptx_cp_async_wait_##n();
DECLARE_WAIT(0) DECLARE_WAIT(1) DECLARE_WAIT(2) DECLARE_WAIT(3)
DECLARE_WAIT(4) DECLARE_WAIT(5) DECLARE_WAIT(6) DECLARE_WAIT(7)
u32 ptx_shared_address(const void* p);
void ptx_cp_async_commit();
void ptx_red_add_f32(void* p, float a);
void ptx_red_add_f64(void* p, double a);
void ptx_red_add_u32(void* p, u32 a);
void ptx_red_add_u64(void* p, u64 a);
void ptx_red_add_f16(void* p, u32 a);
void ptx_red_add_bf16(void* p, u32 a);
u32 ptx_cas_b16(void* p, u32 a, u32 b);
void ptx_red_and_b32(void* p, u32 a);
void ptx_red_or_b32(void* p, u32 a);

// --- warps -------------------------------------------------------------------------------------------------------------

#define DECLARE_LDMATRIX(n) void ptx_ldmatrix_x##n(u32* d, u32 a); void ptx_ldmatrix_x##n##_trans(u32* d, u32 a);
DECLARE_LDMATRIX(1) DECLARE_LDMATRIX(2) DECLARE_LDMATRIX(4)
#define DECLARE_MMA(name) void ptx_mma_##name(u32* d, const u32* a, const u32* b);
DECLARE_MMA(m16n8k16_f32_f16) DECLARE_MMA(m16n8k16_f16_f16) DECLARE_MMA(m16n8k16_f32_bf16) DECLARE_MMA(m16n8k32_i32_i8)
u32 __shfl_sync(u32 mask, u32 value, u32 lane);
u32 __shfl_xor_sync(u32 mask, u32 value, u32 x);
