// One kernel source, two worlds: nvcc compiles it for a GPU; any C++20 compiler compiles it against an emulation of blocks,
// threads and shared memory (tests/cuda/emulation), which finds a lost barrier or mask without a GPU. Kernels keep to the
// names below for what C++ has no word for; those CUDA itself gives (__syncthreads, __shfl_xor_sync ...) are its own.
#pragma once
#include <cstdint>
#include <cstring>

#ifndef SSL_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace ssl::cuda {

using half_t = __half;
using bfloat_t = __nv_bfloat16;

#define SSL_DEVICE __device__ __forceinline__

// The shared memory that the launch asked for, 1,024 bytes aligned, as the widest swizzle wants it.
SSL_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char ssl_shared[];
  return ssl_shared;
}

SSL_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ------------------------------------------------------------------------------------------------ copies to shared memory
SSL_DEVICE void copy_async16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
SSL_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> SSL_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ------------------------------------------------------------------------------------- tensor cores, a warp at a time
// Four 8 x 8 matrices of 16 bits; lane l holds entries (l / 4, 2 (l % 4)) and the next of each, or those of its transpose.
SSL_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
SSL_DEVICE void load_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// c[16, 8] += a[16, 16] b[16, 8], float16 to float32. Lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
SSL_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c[8, 8] += a[8, 4] b[4, 8] in float64: lane l has a[l / 4, l % 4], b[l % 4, l / 4], c[l / 4, 2 (l % 4)] and the next.
SSL_DEVICE void multiply_add(double& c0, double& c1, double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(c0), "+d"(c1) : "d"(a), "d"(b));
}

// The thread's number in its warp, asked for anew: for code that runs too rarely to keep it in a register for.
SSL_DEVICE int lane_now() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// ------------------------------------------------------------------------------------------------------------ numbers
SSL_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SSL_DEVICE double exp2_fast(double x) { return exp2(x); }
SSL_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SSL_DEVICE double reciprocal_fast(double x) { return 1 / x; }
SSL_DEVICE uint32_t pack_halves(float low, float high) {  // round to nearest; low in the lower 16 bits
  const __half2 both = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, 4);
  return bits;
}
SSL_DEVICE float lower_half(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits))); }
SSL_DEVICE float upper_half(uint32_t bits) { return __half2float(__ushort_as_half(uint16_t(bits >> 16))); }

// ------------------------------------------------------------------------------------------------------------- launch
// Returns CUDA's error code, 0 if it was launched; never leaves a sticky error behind, never waits for the device.
template <class... Formal, class... Actual>
int launch(void (*kernel)(Formal...), dim3 grid, unsigned threads, size_t shared, void* stream, Actual... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared > 48 * 1024)
    if (const cudaError_t e = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)))
      return cudaGetLastError(), e;
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(Formal(arguments)...);
  return cudaGetLastError();
}

}  // namespace ssl::cuda
#else
#include "emulated.h"
#endif

namespace ssl::cuda {

// Where Hopper has a kernel of its own in another's place, that other is left empty for it: nobody launches it there.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool FOR_HOPPER = true;
#else
constexpr bool FOR_HOPPER = false;
#endif

// Two numbers that lie together, the first at an even place.
SSL_DEVICE void load_two(float (&x)[2], const float* from) {
  const float2 two = *reinterpret_cast<const float2*>(from);
  x[0] = two.x, x[1] = two.y;
}
SSL_DEVICE void load_two(double (&x)[2], const double* from) {
  const double2 two = *reinterpret_cast<const double2*>(from);
  x[0] = two.x, x[1] = two.y;
}

}  // namespace ssl::cuda
