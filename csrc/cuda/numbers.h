// Numbers of a tensor of any dtype, for kernels that go once through memory and compute in another.
#pragma once
#include "dtype.h"
#include "elements.h"

namespace ssl::cuda {

// A thread's share: the first `count` of COUNT numbers that lie `step` apart, `otherwise` for the rest. The dtype is asked for once,
// not at every number, so that all loads are on their way before the first is waited for.
template <class Real, int COUNT>
SSL_DEVICE void load_share(Real (&x)[COUNT], const void* data, DType dtype, int64_t at, int64_t step, int count, Real otherwise) {
  auto load = [&]<class T>() {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) x[k] = k < count ? Real(widened(static_cast<const T*>(data)[at + step * k])) : otherwise;
  };
  if constexpr (same_type<Real, double>) return load.template operator()<double>();
  else switch (dtype) {
    case DType::bf16: return load.template operator()<bfloat_t>();
    case DType::f16: return load.template operator()<half_t>();
    default: return load.template operator()<float>();
  }
}
template <class Real, int COUNT>
SSL_DEVICE void put_share(void* data, DType dtype, int64_t at, int64_t step, int count, const Real (&x)[COUNT]) {
  auto put = [&]<class T>() {
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
      if (k < count) static_cast<T*>(data)[at + step * k] = narrowed<T>(x[k]);
  };
  if constexpr (same_type<Real, double>) return put.template operator()<double>();
  else switch (dtype) {
    case DType::bf16: return put.template operator()<bfloat_t>();
    case DType::f16: return put.template operator()<half_t>();
    default: return put.template operator()<float>();
  }
}

}  // namespace ssl::cuda
