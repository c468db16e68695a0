// The largest product of every row of a panel, and where it is.
#pragma once
#include <limits>
#include "points_tiles.h"
#include "tile.h"

namespace ssl::SSL_ISA {

// Depth of one pass of a product: a panel's part and the sums between passes take 16 KiB each.
constexpr int64_t nearest_depth = 64;

template <class T> SSL_INLINE typename Simd<T>::Bits splat_index(int64_t k) {
  using Index = typename Simd<T>::Bits;
  return Index{} + std::decay_t<decltype(Index{}[0])>(k);
}

// A lane keeps the best of its columns, and the number of the vector it came from: with the lane, that is the column.
// Columns come in order and only a larger product replaces one, so that among equals the first stays. What is left out
// is -infinity, which never replaces anything; a row of nothing else answers its first candidate.
template <class T, bool Both>
SSL_INLINE void nearest_of_panel(const Nearest<T>& s, int64_t row_panel, const BestOfColumns<T>& columns) {
  FlushDenormals flush;
  using Index = typename Simd<T>::Bits;
  constexpr int64_t P = panel<T>, L = lanes<T>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const int64_t i0 = row_panel * P, rows = s.x.rows - i0 < P ? s.x.rows - i0 : P;
  alignas(64) T partial[P * P];
  Vec<T> best[P];
  Index from[P];
  for (int64_t r = 0; r < rows; ++r) {
    best[r] = splat<T>(lowest);
    from[r] = Index{} - 1;
  }
  const T* a = s.x.z + row_panel * s.x.width * P;
  for (int64_t j = Both ? i0 : 0; j < s.y.padded; j += P) {
    const T* b = s.y.z + j * s.y.width;
    // wide rows are taken in passes, whose part of the panel stays in L1 for all rows
    int64_t k0 = 0;
    for (; s.y.width - k0 > nearest_depth; k0 += nearest_depth)
      for_row_groups(rows, [&](auto count, int64_t r0) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value;
        Acc<T, R> acc;
        k0 == 0 ? clear<T, R, NV>(acc) : read<T, R, NV>(acc, partial + r0 * P, P);
        multiply_add<T, R, NV>(acc, a + k0 * P + r0, 1, P, b + k0 * P, P, nearest_depth);
        write<T, R, NV>(acc, partial + r0 * P, P);
      });
    for_row_groups(rows, [&](auto count, int64_t r0) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      Acc<T, R> acc;
      k0 == 0 ? clear<T, R, NV>(acc) : read<T, R, NV>(acc, partial + r0 * P, P);
      multiply_add<T, R, NV>(acc, a + k0 * P + r0, 1, P, b + k0 * P, P, s.y.width - k0);
      // rows r0 .. r0 + R leave out the columns from `first` on, one each
      const int64_t first = i0 + r0 + s.skip - j;
      if (__builtin_expect((s.skips && first > -R && first < P) || j + P > s.y.rows, 0)) {
        alignas(64) T products[R * P];
        write<T, R, NV>(acc, products, P);
        for (int64_t r = 0; r < R; ++r)
          for (int64_t c = 0; c < P; ++c)
            if ((s.skips && c == first + r) || j + c >= s.y.rows) products[r * P + c] = lowest;
        read<T, R, NV>(acc, products, P);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        Vec<T> top = best[r0 + r];
        Index number = from[r0 + r];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Index better = acc[r][v] > top;
          top = better ? acc[r][v] : top;
          number = better ? splat_index<T>(j / L + v) : number;
        }
        best[r0 + r] = top;
        from[r0 + r] = number;
      }
      if (Both && j != i0)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          Index row;
          memcpy(&row, columns.row + j + v * L, sizeof row);
          Vec<T> top = load<T>(columns.best + j + v * L);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) {
            const Index better = acc[r][v] > top;
            top = better ? acc[r][v] : top;
            row = better ? splat_index<T>(i0 + r0 + r) : row;
          }
          store<T>(columns.best + j + v * L, top);
          memcpy(columns.row + j + v * L, &row, sizeof row);
        }
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t own = s.skips ? i0 + r + s.skip : -1;
    int64_t index = own == 0 && s.y.rows > 1 ? 1 : 0;
    T top = lowest;
    for (int64_t k = 0; k < L; ++k) {
      if (from[r][k] < 0) continue;
      const int64_t column = from[r][k] * L + k;
      if (best[r][k] > top || (best[r][k] == top && column < index)) {
        top = best[r][k];
        index = column;
      }
    }
    s.index[i0 + r] = index;
    if (Both) s.best[i0 + r] = top;
  }
}

template <class T> void nearest_of_rows(const Nearest<T>& s, int64_t row_panel) {
  nearest_of_panel<T, false>(s, row_panel, {});
}
template <class T> void nearest_of_both(const Nearest<T>& s, int64_t row_panel, const BestOfColumns<T>& columns) {
  nearest_of_panel<T, true>(s, row_panel, columns);
}

}  // namespace ssl::SSL_ISA
