// What entries of the matrix add to the results of their rows.
#pragma once
#include "simd.h"
#include "sweep.h"

namespace ssl::SSL_ISA {

// Below every logit: where a running maximum starts.
template <class T> constexpr T masked = T(-1e30);

// Adds 2^top * sum to row i of a forward pass with a running maximum.
template <class T> SSL_INLINE void merge(const Side<T>& side, int64_t i, T top, T sum) {
  if (top > side.top[i]) {
    side.sum[i] = side.sum[i] * __builtin_exp2(double(side.top[i]) - top) + sum;
    side.top[i] = top;
  } else {
    side.sum[i] += sum * __builtin_exp2(double(top) - side.top[i]);
  }
}

// The positive at (row, column). Of a set against itself it may be the column's too, whose tile is not visited.
template <class T> SSL_INLINE void set_positive(const Sweep<T>& s, int64_t row, int64_t column, T product, bool both) {
  if (!s.self()) {
    s.pos[row] = product;
    return;
  }
  const int64_t rows = s.x->rows, ahead = column > row ? column - row : column - row + rows;
  s.pos[(ahead / s.rule.period - 1) * rows + row] = product;
  if (both) s.pos[((rows - ahead) / s.rule.period - 1) * rows + column] = product;
}

// f(side, row, weight) for every positive of row i of a side: where it is, and the gradient of its logit.
template <class T, class F> SSL_INLINE void for_positives(const Sweep<T>& s, const Side<T>& side, int64_t i, F&& f) {
  if (!s.dpos) return;
  if (s.self()) {
    const int64_t rows = side.rows, views = rows / s.rule.period;
    for (int64_t o = 1; o < views; ++o) {
      int64_t twin = i + o * s.rule.period;
      if (twin >= rows) twin -= rows;
      f(side, twin, s.dpos[(o - 1) * rows + i] + s.dpos[(views - o - 1) * rows + twin]);
    }
  } else if (&side == s.x) {
    f(*s.y, i + s.rule.offset, s.dpos[i]);
  } else if (const int64_t row = i - s.rule.offset; row >= 0 && row < s.x->rows) {
    f(*s.x, row, s.dpos[row]);
  }
}

}  // namespace ssl::SSL_ISA
