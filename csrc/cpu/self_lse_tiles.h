// The sweep over one pair of blocks: a tile of logits at a time in registers, its exponentials, and what they feed.
#pragma once
#include "results.h"
#include "rows.h"

namespace ssl::SSL_ISA {

// Rows of a tile of logits kept for the gradient's products: 128 x 512 floats are a quarter of a 1 MiB L2 cache.
constexpr int64_t strip = 128;
// Depth of one pass of a product: 128 rows of a 64-float panel are 32 KiB, what an L1 cache holds beside A.
constexpr int64_t depth_block = 128;

// t[r][:] = z_i . z_j for rows i .. i + R and one panel of columns j. Wide embeddings are taken in passes so that the
// panel's slice stays in L1; `partial` holds the sums between passes, and the caller loops over passes outermost.
template <class T, int R>
SSL_INLINE void logits_pass(const SelfLse<T>& s, Acc<T, R>& acc, int64_t i, int64_t j, int64_t k0, int64_t k1) {
  constexpr int64_t P = panel<T>;
  const T* b = s.zt + (j / P) * s.width * P;
  for (int64_t k = k0; k < k1; k += P) {
    const int64_t n = k1 - k < P ? k1 - k : P;
    multiply_add<T, R, NV>(acc, z_row(s, s.z, k / P, i), P, 1, b + k * P, P, n);
  }
}

// Which entries of a tile are left out: 0 where left out, 1 elsewhere, and the positives' products on the way.
template <class T, int R>
__attribute__((noinline)) void mask_tile(const SelfLse<T>& s, const T* products, int64_t i, int64_t j, bool both_sides,
                                         T* keep) {
  constexpr int64_t P = panel<T>;
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < P; ++c) keep[r * P + c] = j + c < s.rows ? T(1) : T(0);
  for (int64_t r = 0; r < R; ++r) {
    const int64_t row = i + r;
    for (int64_t column = s.same.first(row, j); column < j + P && column < s.rows; column += s.same.period) {
      keep[r * P + column - j] = 0;
      if (s.pos && column != row) set_positive(s, row, column, products[r * P + column - j], both_sides);
    }
  }
}

// Runs epilogue(Count<R>, acc, row, panel, keep) over the tiles of a block; keep is null where nothing is left out.
template <class T, class Epilogue>
SSL_INLINE void for_tiles(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* partial,
                          Epilogue&& epilogue) {
  constexpr int64_t P = panel<T>;
  alignas(64) T products[MR * P], keep[MR * P];
  const bool both_sides = i0 != j0;
  // rows outermost: the strip's rows stay in L2 while the panels pass by
  for (int64_t ii = i0; ii < i1; ii += strip) {
    const int64_t rows = i1 - ii < strip ? i1 - ii : strip;
    for (int64_t j = j0; j < j1; j += P) {
      const bool touched = j + P > s.rows || s.same.touches(ii, ii + rows, j, j + P);
      int64_t k0 = 0;
      for (; s.width - k0 > depth_block; k0 += depth_block)
        for_row_groups(rows, [&](auto count, int64_t r) __attribute__((always_inline)) {
          constexpr int R = decltype(count)::value;
          Acc<T, R> acc;
          if (k0 == 0)
            clear<T, R, NV>(acc);
          else
            read<T, R, NV>(acc, partial + r * P, P);
          logits_pass<T, R>(s, acc, ii + r, j, k0, k0 + depth_block);
          write<T, R, NV>(acc, partial + r * P, P);
        });
      for_row_groups(rows, [&](auto count, int64_t r) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value;
        const int64_t i = ii + r;
        Acc<T, R> acc;
        if (k0 == 0)
          clear<T, R, NV>(acc);
        else
          read<T, R, NV>(acc, partial + r * P, P);
        logits_pass<T, R>(s, acc, i, j, k0, s.width);
        const bool mask = touched && (j + P > s.rows || s.same.touches(i, i + R, j, j + P));
        if (__builtin_expect(mask, 0)) {
          write<T, R, NV>(acc, products, P);
          mask_tile<T, R>(s, products, i, j, both_sides, keep);
        }
        epilogue(count, acc, i, j, mask ? keep : nullptr);
      });
    }
  }
}

template <class T> SSL_INLINE Vec<T> kept(Vec<T> e, const T* keep) { return load<T>(keep) != T(0) ? e : Vec<T>{}; }

// ------------------------------------------------------------------------------------------------------- forward
// Row sums gather in lanes, column sums in one panel; both sides' totals are added once a block, in double.
template <class T>
SSL_INLINE void forward_fixed(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  T *partial = scratch, *row_sums = partial + strip * P, *column_sums = row_sums + (i1 - i0) * L;
  memset(row_sums, 0, ((i1 - i0) * L + (j1 - j0)) * sizeof(T));
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low), shift = splat<T>(s.shift);
  for_tiles(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
                                            __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    Vec<T> column[NV];
    for (int v = 0; v < NV; ++v) column[v] = load<T>(column_sums + (j - j0) + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Vec<T> row = load<T>(row_sums + (i - i0 + r) * L);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        Vec<T> e = exp2<T>(acc[r][v] * scale + (acc[r][v] * scale_low - shift));
        if (__builtin_expect(keep != nullptr, 0)) e = kept<T>(e, keep + r * P + v * L);
        row += e;
        column[v] += e;
      }
      store<T>(row_sums + (i - i0 + r) * L, row);
    }
    for (int v = 0; v < NV; ++v) store<T>(column_sums + (j - j0) + v * L, column[v]);
  });
  for (int64_t i = i0; i < i1; ++i) s.sum[i] += sum_lanes<T>(load<T>(row_sums + (i - i0) * L));
  if (i0 != j0)
    for (int64_t j = j0; j < j1; ++j) s.sum[j] += column_sums[j - j0];
}

// With a running maximum a lane (of rows, or of columns) at a time: two exponentials an entry, one a side.
template <class T>
SSL_INLINE void forward_running(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  const int64_t lanes_of_rows = (i1 - i0) * L, columns = j1 - j0;
  T *partial = scratch, *row_sums = partial + strip * P, *column_sums = row_sums + lanes_of_rows,
    *row_tops = column_sums + columns, *column_tops = row_tops + lanes_of_rows;
  memset(row_sums, 0, (lanes_of_rows + columns) * sizeof(T));
  for (int64_t k = 0; k < lanes_of_rows + columns; ++k) row_tops[k] = masked<T>;
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low);
  for_tiles(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
                                            __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    // The maximum is that of rounded logits; the exponentials see exact ones, the same as in the backward pass.
    auto tops_of = [&](Vec<T> top, int r, int v) __attribute__((always_inline)) {
      Vec<T> t = acc[r][v] * scale;
      if (keep) t = load<T>(keep + r * P + v * L) != T(0) ? t : splat<T>(masked<T>);
      return larger(t, top);
    };
    auto term = [&](Vec<T> top, int r, int v) __attribute__((always_inline)) {
      const Vec<T> e = exp2<T>((acc[r][v] * scale - top) + acc[r][v] * scale_low);
      return keep ? kept<T>(e, keep + r * P + v * L) : e;
    };
    for (int v = 0; v < NV; ++v) {
      T *sums = column_sums + (j - j0) + v * L, *tops = column_tops + (j - j0) + v * L;
      const Vec<T> before = load<T>(tops);
      Vec<T> top = before;
      for (int r = 0; r < R; ++r) top = tops_of(top, r, v);
      Vec<T> sum = load<T>(sums) * exp2<T>(before - top);
      for (int r = 0; r < R; ++r) sum += term(top, r, v);
      store<T>(sums, sum);
      store<T>(tops, top);
    }
    for (int r = 0; r < R; ++r) {
      T *sums = row_sums + (i - i0 + r) * L, *tops = row_tops + (i - i0 + r) * L;
      const Vec<T> before = load<T>(tops);
      Vec<T> top = before;
      for (int v = 0; v < NV; ++v) top = tops_of(top, r, v);
      Vec<T> sum = load<T>(sums) * exp2<T>(before - top);
      for (int v = 0; v < NV; ++v) sum += term(top, r, v);
      store<T>(sums, sum);
      store<T>(tops, top);
    }
  });
  for (int64_t i = i0; i < i1; ++i)
    for (int64_t k = 0; k < L; ++k) merge(s, i, row_tops[(i - i0) * L + k], row_sums[(i - i0) * L + k]);
  if (i0 != j0)
    for (int64_t j = j0; j < j1; ++j) merge(s, j, column_tops[j - j0], column_sums[j - j0]);
}

template <class T>
void forward(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  FlushDenormals flush;
  i1 = i1 < s.rows ? i1 : s.rows;
  if (s.running)
    forward_running(s, i0, i1, j0, j1, scratch);
  else
    forward_fixed(s, i0, i1, j0, j1, scratch);
}

// ------------------------------------------------------------------------------------------------------ backward
template <class T, bool Running>
SSL_INLINE void gradient_tile(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* partial, T* G) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  const int64_t stride = j1 - j0;
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low), shift = splat<T>(s.shift);
  for_tiles(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
                                            __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> weight_i = splat<T>(s.weight[i + r]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const Vec<T> weight_j = load<T>(s.weight + j + v * L);
        Vec<T> g;
        if constexpr (Running) {
          g = exp2<T>((acc[r][v] * scale - splat<T>(s.neg2[i + r])) + acc[r][v] * scale_low) * weight_i +
              exp2<T>((acc[r][v] * scale - load<T>(s.neg2 + j + v * L)) + acc[r][v] * scale_low) * weight_j;
        } else {
          g = exp2<T>(acc[r][v] * scale + (acc[r][v] * scale_low - shift)) * (weight_i + weight_j);
        }
        if (__builtin_expect(keep != nullptr, 0)) g = kept<T>(g, keep + r * P + v * L);
        store<T>(G + (i - i0 + r) * stride + (j - j0) + v * L, g);
      }
    }
  });
}

// dZ_I += G Z_J and dZ_J += G' Z_I, a strip of rows of G at a time
template <class T>
void backward(const SelfLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  FlushDenormals flush;
  constexpr int64_t P = panel<T>;
  i1 = i1 < s.rows ? i1 : s.rows;
  T *partial = scratch, *G = partial + strip * P;
  const int64_t columns = j1 - j0;
  for (int64_t ii = i0; ii < i1; ii += strip) {
    const int64_t rows = i1 - ii < strip ? i1 - ii : strip;
    if (s.running)
      gradient_tile<T, true>(s, ii, ii + rows, j0, j1, partial, G);
    else
      gradient_tile<T, false>(s, ii, ii + rows, j0, j1, partial, G);
    for (int64_t c = 0; c < s.chunks; ++c) {
      const int64_t width = s.width - c * P;
      for (int64_t k = 0; k < columns; k += depth_block) {
        const int64_t depth = columns - k < depth_block ? columns - k : depth_block;
        add_product<T>(width, z_row(s, s.g, c, ii), rows, P, G + k, columns, 1, z_row(s, s.z, c, j0 + k), depth);
      }
      if (i0 != j0)
        add_product<T>(width, z_row(s, s.g, c, j0), columns, P, G, 1, columns, z_row(s, s.z, c, ii), rows);
    }
  }
}

// A power of two that splits the rows into some 32 blocks: half as many pairs can run at once. Larger blocks reuse more
// of what the caches hold, but from 512 rows on a block's strip of the gradient leaves the L2 cache.
template <class T> Layout layout(const SelfLse<T>& s) {
  constexpr int64_t P = panel<T>;
  int64_t block = 64;
  while (block < 512 && block * 32 < s.rows) block *= 2;
  block = (block + P - 1) / P * P;
  const int64_t forward = 2 * (block * lanes<T> + block), backward = strip * block;
  return {block, s.padded * s.width, s.chunks * s.padded * P, strip * P + (forward > backward ? forward : backward)};
}

template <class T> constexpr Kernels<T> kernels() {
  return {panel<T>, layout<T>, pack<T>, forward<T>, backward<T>, finish<T>};
}

}  // namespace ssl::SSL_ISA
