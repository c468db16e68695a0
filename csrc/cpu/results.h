// What entries of the matrix add to the results of their rows.
#pragma once
#include "simd.h"
#include "sweep.h"

namespace ssl::SSL_ISA {

// Below every logit: where a running maximum starts.
template <class T> constexpr T masked = T(-1e30);

// Adds 2^top * sum to row i of a forward pass with a running maximum.
template <class T> SSL_INLINE void merge(const SelfLse<T>& s, int64_t i, T top, T sum) {
  if (top > s.top[i]) {
    s.sum[i] = s.sum[i] * __builtin_exp2(double(s.top[i]) - top) + sum;
    s.top[i] = top;
  } else {
    s.sum[i] += sum * __builtin_exp2(double(top) - s.top[i]);
  }
}

// The positive at (row, twin), for the row alone or for both.
template <class T> SSL_INLINE void set_positive(const SelfLse<T>& s, int64_t row, int64_t twin, T product, bool both) {
  const int64_t ahead = twin > row ? twin - row : twin - row + s.rows;
  s.pos[(ahead / s.same.period - 1) * s.rows + row] = product;
  if (both) s.pos[((s.rows - ahead) / s.same.period - 1) * s.rows + twin] = product;
}

}  // namespace ssl::SSL_ISA
