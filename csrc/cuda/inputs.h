// Rows of the embeddings as they came in.
#pragma once
#include "elements.h"
#include "warps.h"

namespace ssl::cuda {

constexpr double EPS = 1e-12;  // as torch.nn.functional.normalize

template <class T> struct InputRow {
  const T* at;  // null: no such row
  int64_t local;
  int part;
  bool vector;
};

// Row `row` of inputs that stand one below the other.
template <class T> SSL_DEVICE InputRow<T> input_row(const Inputs& inputs, int row) {
  for (int k = 0; k < inputs.count; ++k) {
    const Input& part = inputs.parts[k];
    const int64_t local = row - part.first;
    if (local >= 0 && local < part.rows) {
      const T* const data = static_cast<const T*>(part.data);
      return {data + local * part.stride, local, k, aligned(data, part.stride)};
    }
  }
  return {nullptr, 0, 0, false};
}

// The largest entry of a row, 1 for a row of zeros: it goes out first, so that squares neither overflow nor vanish.
template <class Real, class T> SSL_DEVICE Real largest_entry(const InputRow<T>& row, int width, int lane, int lanes) {
  Real top = 0;
  if (row.at)
    for (int d = 8 * lane; d < width; d += 8 * lanes) {
      Real x[8];
      load_eight(x, row.at + d, width - d, row.vector);
#pragma unroll
      for (int k = 0; k < 8; ++k) top = larger(top, absolute(x[k]));
    }
  top = largest_of_lanes(top, lanes);
  return top > 0 ? top : Real(1);
}

// max(norm, EPS), but NaN for NaN.
template <class Real> SSL_DEVICE Real divisor(Real norm) { return norm < Real(EPS) ? Real(EPS) : norm; }

// The power of two in (x / 2, x], by the bits of the exponent; 0 for 0.
SSL_DEVICE float power_of_two_below(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

}  // namespace ssl::cuda
