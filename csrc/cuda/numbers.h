// One number of a tensor of any dtype, for kernels that go once through memory and compute in another.
#pragma once
#include "dtype.h"
#include "device.h"

namespace ssl::cuda {

template <class Real> SSL_DEVICE Real number_at(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::f64: return Real(static_cast<const double*>(data)[at]);
    case DType::bf16: return Real(__bfloat162float(static_cast<const bfloat_t*>(data)[at]));
    case DType::f16: return Real(__half2float(static_cast<const half_t*>(data)[at]));
    default: return Real(static_cast<const float*>(data)[at]);
  }
}
template <class Real> SSL_DEVICE void put_at(void* data, DType dtype, int64_t at, Real x) {
  switch (dtype) {
    case DType::f64: static_cast<double*>(data)[at] = double(x); break;
    case DType::bf16: static_cast<bfloat_t*>(data)[at] = __float2bfloat16_rn(float(x)); break;
    case DType::f16: static_cast<half_t*>(data)[at] = __float2half_rn(float(x)); break;
    default: static_cast<float*>(data)[at] = float(x);
  }
}

}  // namespace ssl::cuda
