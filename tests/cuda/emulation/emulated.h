// CUDA's names and those of csrc/cuda/device.h for a C++ compiler: the other half of device.h.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define SSL_DEVICE inline

// ------------------------------------------------------------------------------------------------------------ numbers
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half h) { return float(std::bit_cast<_Float16>(h.bits)); }
inline __half __float2half_rn(float x) { return {std::bit_cast<uint16_t>(_Float16(x))}; }
inline __half __double2half(double x) { return {std::bit_cast<uint16_t>(_Float16(x))}; }
inline float __bfloat162float(__nv_bfloat16 h) { return std::bit_cast<float>(uint32_t(h.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return {x == x ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : uint16_t(0x7fff)};
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half h) { return h.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
// What the compiler may not fuse with what follows.
inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  const volatile double product = a * b;
  return product;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
using std::max;
using std::min;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

// ------------------------------------------------------------------------------------------------------------- memory
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcs(T* p, T x) { *p = x; }
// Blocks come one after the other and no thread is interrupted: a plain access is an atomic one.
template <class T> T atomicAdd(T* p, T x) { return std::exchange(*p, T(*p + x)); }
template <class T> T atomicMax(T* p, T x) { return std::exchange(*p, std::max(*p, x)); }
template <class T> T atomicExch(T* p, T x) { return std::exchange(*p, x); }
template <class T> T atomicCAS(T* p, T expected, T x) { return std::exchange(*p, *p == expected ? x : *p); }
inline void __threadfence() {}

// -------------------------------------------------------------------------------------------------------------- threads
using ssl::emulated::Site;

inline void __syncthreads(Site site = Site::current()) { ssl::emulated::barrier(0, 0, true, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, Site site = Site::current()) {
  ssl::emulated::together([](auto&, auto&) {}, mask, nullptr, nullptr, site);
}

namespace ssl::emulated {
template <class T> struct Sent {
  T value;
  int from;
};
template <class T> T exchange(unsigned mask, T value, int from, const Site& site) {
  const Sent<T> in{value, from};
  T out = value;
  together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        for (int k = 0; k < 32; ++k)
          if (ins[k]) {
            const int from = static_cast<const Sent<T>*>(ins[k])->from;
            if (!ins[from]) fault("a shuffle reads lane %d, which the mask does not name", from);
            *static_cast<T*>(outs[k]) = static_cast<const Sent<T>*>(ins[from])->value;
          }
      },
      mask, &in, &out, site);
  return out;
}
}  // namespace ssl::emulated

template <class T> T __shfl_xor_sync(unsigned mask, T x, int by, int width = 32, Site site = Site::current()) {
  const int lane = ssl::emulated::lane(), to = lane ^ by;
  return ssl::emulated::exchange(mask, x, to / width == lane / width ? to : lane, site);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, int by, int width = 32, Site site = Site::current()) {
  const int lane = ssl::emulated::lane();
  return ssl::emulated::exchange(mask, x, lane % width + by < width ? lane + by : lane, site);
}
template <class T> T __shfl_up_sync(unsigned mask, T x, int by, int width = 32, Site site = Site::current()) {
  const int lane = ssl::emulated::lane();
  return ssl::emulated::exchange(mask, x, lane % width >= by ? lane - by : lane, site);
}
template <class T> T __shfl_sync(unsigned mask, T x, int from, int width = 32, Site site = Site::current()) {
  const int lane = ssl::emulated::lane();
  return ssl::emulated::exchange(mask, x, lane / width * width + (from & (width - 1)), site);
}
inline unsigned __ballot_sync(unsigned mask, int holds, Site site = Site::current()) {
  unsigned out = 0;
  ssl::emulated::together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        unsigned votes = 0;
        for (int k = 0; k < 32; ++k)
          if (ins[k] && *static_cast<const int*>(ins[k])) votes |= 1u << k;
        for (int k = 0; k < 32; ++k)
          if (outs[k]) *static_cast<unsigned*>(outs[k]) = votes;
      },
      mask, &holds, &out, site);
  return out;
}
inline int __any_sync(unsigned mask, int holds, Site site = Site::current()) {
  return __ballot_sync(mask, holds, site) != 0;
}
inline int __all_sync(unsigned mask, int holds, Site site = Site::current()) {
  return __ballot_sync(mask, holds, site) == mask;
}

// -------------------------------------------------------------------------------------------------------------- runtime
using cudaError_t = int;
constexpr cudaError_t cudaErrorInvalidValue = 1;
inline int cudaDriverGetVersion(int* version) { return *version = 0, 0; }
inline int cudaRuntimeGetVersion(int* version) { return *version = 0, 0; }
struct cudaFuncAttributes {};
inline int cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return 0; }
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(int code) { return code == 1 ? "invalid argument" : "invalid configuration argument"; }

namespace ssl::cuda {

using half_t = __half;
using bfloat_t = __nv_bfloat16;

inline unsigned char* shared_memory() { return emulated::shared_memory(); }
inline uint32_t shared_address(const void* p) { return emulated::shared_address(p); }

inline void copy_async16(void* to, const void* from) { emulated::copy16(to, from); }
inline void copy_commit() { emulated::copy_commit(); }
template <int N> void copy_wait() { emulated::copy_wait(N); }

// ------------------------------------------------------------------------------------- tensor cores, a warp at a time
template <bool TRANSPOSED> void load_eights(uint32_t (&r)[4], const void* row, const Site& site) {
  if (shared_address(row) % 16) emulated::fault("load_matrices: the address of a row is not aligned to 16 bytes");
  emulated::together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        for (int lane = 0; lane < 32; ++lane)
          for (int m = 0; m < 4; ++m) {
            uint16_t two[2];
            for (int k = 0; k < 2; ++k) {
              const int row = TRANSPOSED ? lane % 4 * 2 + k : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + k;
              two[k] = static_cast<const uint16_t*>(ins[m * 8 + row])[column];
            }
            memcpy(static_cast<uint32_t*>(outs[lane]) + m, two, 4);
          }
      },
      0xffffffffu, row, &r, site);
}
inline void load_matrices(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  load_eights<false>(r, row, site);
}
inline void load_transposed(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  load_eights<true>(r, row, site);
}

inline float lower_half(uint32_t bits) { return __half2float({uint16_t(bits)}); }
inline float upper_half(uint32_t bits) { return __half2float({uint16_t(bits >> 16)}); }
inline uint32_t pack_halves(float low, float high) {
  return __float2half_rn(low).bits | uint32_t(__float2half_rn(high).bits) << 16;
}

inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site = Site::current()) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b0, b1};
  emulated::together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        float a[16][16], b[16][8], sum[16][8] = {};
        for (int lane = 0; lane < 32; ++lane) {
          const auto* r = static_cast<const uint32_t*>(ins[lane]);
          const int row = lane / 4, two = lane % 4 * 2;
          for (int k = 0; k < 4; ++k) {
            a[row + k % 2 * 8][two + k / 2 * 8] = lower_half(r[k]);
            a[row + k % 2 * 8][two + k / 2 * 8 + 1] = upper_half(r[k]);
          }
          for (int k = 0; k < 2; ++k) {
            b[two + k * 8][row] = lower_half(r[4 + k]);
            b[two + k * 8 + 1][row] = upper_half(r[4 + k]);
          }
        }
        for (int i = 0; i < 16; ++i)
          for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) sum[i][j] += a[i][k] * b[k][j];
        for (int lane = 0; lane < 32; ++lane)
          for (int e = 0; e < 4; ++e)
            static_cast<float*>(outs[lane])[e] += sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
      },
      0xffffffffu, in, &c, site);
}
inline void multiply_add(double& c0, double& c1, double a, double b, Site site = Site::current()) {
  const double in[2] = {a, b};
  double out[2] = {c0, c1};
  emulated::together(
      [](const void* const(&ins)[32], void* const(&outs)[32]) {
        for (int lane = 0; lane < 32; ++lane)
          for (int e = 0; e < 2; ++e)
            for (int k = 0; k < 4; ++k) {
              const auto* left = static_cast<const double*>(ins[lane / 4 * 4 + k]);
              const auto* right = static_cast<const double*>(ins[(lane % 4 * 2 + e) * 4 + k]);
              static_cast<double*>(outs[lane])[e] += left[0] * right[1];
            }
      },
      0xffffffffu, in, out, site);
  c0 = out[0];
  c1 = out[1];
}

inline int lane_now() { return ssl::emulated::lane(); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline double exp2_fast(double x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1 / x; }
inline double reciprocal_fast(double x) { return 1 / x; }

// ------------------------------------------------------------------------------------------------------------- launch
template <class... Formal, class... Actual>
int launch(void (*kernel)(Formal...), dim3 grid, unsigned threads, size_t shared, void*, Actual... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  auto body = [&] { kernel(Formal(arguments)...); };
  return emulated::run(grid, threads, shared, (sizeof(Formal) + ... + 0),
                       [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

}  // namespace ssl::cuda
