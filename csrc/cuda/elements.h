// Elements of any dtype, eight at a time: 16 bytes an access where they lie so, one by one elsewhere.
#pragma once
#include "device.h"
#include "dtype.h"

namespace ssl::cuda {

// Calls f.operator()<T>() with the type of the elements.
template <class F> auto with_elements(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f.template operator()<double>();
    case DType::bf16: return f.template operator()<bfloat_t>();
    case DType::f16: return f.template operator()<half_t>();
    default: return f.template operator()<float>();
  }
}

template <class A, class B> constexpr bool same_type = false;
template <class A> constexpr bool same_type<A, A> = true;
template <class Real, class If, class Otherwise> struct Choose {
  using type = Otherwise;
};
template <class If, class Otherwise> struct Choose<double, If, Otherwise> {
  using type = If;
};
// What is computed in for elements T: float64 for float64, float32 for everything else.
template <class T> using RealOf = typename Choose<T, double, float>::type;

SSL_DEVICE float widened(float x) { return x; }
SSL_DEVICE double widened(double x) { return x; }
SSL_DEVICE float widened(bfloat_t x) { return __bfloat162float(x); }
SSL_DEVICE float widened(half_t x) { return __half2float(x); }

template <class T, class Real> SSL_DEVICE T narrowed(Real x) {
  if constexpr (same_type<T, bfloat_t>) return __float2bfloat16_rn(float(x));
  else if constexpr (same_type<T, half_t>) return __float2half_rn(float(x));
  else return T(x);
}

// The largest finite element: what a number is held to that float32 still holds.
template <class T> constexpr float LARGEST = same_type<T, half_t> ? 65504.0f : 3.3895313892515355e38f;
template <class T> constexpr bool is_half = same_type<T, half_t> || same_type<T, bfloat_t>;

SSL_DEVICE int up_to_eight(int64_t left) { return left < 8 ? int(left) : 8; }

template <class T> SSL_DEVICE bool aligned(const T* rows, int64_t stride) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride * int64_t(sizeof(T)) % 16 == 0;
}

// x = the `count` first of eight elements at p, zero beyond; `vector`: p is aligned to 16 bytes.
template <class T> SSL_DEVICE void read_eight(T (&x)[8], const T* p, int count, bool vector) {
  constexpr int ACCESSES = int(sizeof x / 16);
  if (vector && count >= 8) {
    uint4 raw[ACCESSES];
#pragma unroll
    for (int k = 0; k < ACCESSES; ++k) raw[k] = reinterpret_cast<const uint4*>(p)[k];
    memcpy(&x, raw, sizeof x);
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = k < count ? p[k] : narrowed<T>(0.0f);
  }
}
template <class T> SSL_DEVICE void write_eight(T* p, const T (&x)[8], int count, bool vector) {
  constexpr int ACCESSES = int(sizeof x / 16);
  if (vector && count >= 8) {
    uint4 raw[ACCESSES];
    memcpy(raw, &x, sizeof x);
#pragma unroll
    for (int k = 0; k < ACCESSES; ++k) reinterpret_cast<uint4*>(p)[k] = raw[k];
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (k < count) p[k] = x[k];
  }
}

template <class Real, class T> SSL_DEVICE void load_eight(Real (&x)[8], const T* p, int count, bool vector) {
  T raw[8];
  read_eight(raw, p, count, vector);
#pragma unroll
  for (int k = 0; k < 8; ++k) x[k] = Real(widened(raw[k]));
}
template <class Real, class T> SSL_DEVICE void store_eight(T* p, const Real (&x)[8], int count, bool vector) {
  T raw[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) raw[k] = narrowed<T>(x[k]);
  write_eight(p, raw, count, vector);
}

}  // namespace ssl::cuda
