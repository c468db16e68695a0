// The sweep over one pair of blocks: a tile of logits at a time in registers, its exponentials, and what they feed.
#pragma once
#include "results.h"
#include "rows.h"

namespace ssl::SSL_ISA {

// Rows of a tile of logits kept for the gradient's products: 128 x 512 floats are a quarter of a 1 MiB L2 cache.
constexpr int64_t strip = 128;
// Depth of one pass of a product: 128 rows of a 64-float panel are 32 KiB, what an L1 cache holds beside A.
constexpr int64_t depth_block = 128;

// How a sweep multiplies: here numbers of type T as they are. fixed_point.h has another way.
template <class Number> struct Plain {
  using T = Number;
  using Sum = T;  // of products
  static constexpr int64_t depth = depth_block;

  // acc[r][:] += x_i . y_j for rows i .. i + R and one panel of columns j, of which columns k0 .. k1 count. Wide
  // embeddings are taken in passes so that the panel's slice stays in L1; the caller loops over passes outermost.
  template <int R>
  static SSL_INLINE void logits_pass(const Sweep<T>& s, Acc<T, R>& acc, int64_t i, int64_t j, int64_t k0, int64_t k1) {
    constexpr int64_t P = panel<T>;
    const T* b = s.y->zt + (j - s.y->first) / P * s.width * P;
    for (int64_t k = k0; k < k1; k += P) {
      const int64_t n = k1 - k < P ? k1 - k : P;
      multiply_add<T, R, NV>(acc, z_row(*s.x, k / P, i), P, 1, b + k * P, P, n);
    }
  }
  // The products that these sums are.
  template <int R> static SSL_INLINE Acc<T, R>& products(const Sweep<T>&, Acc<T, R>& acc, Acc<T, R>&, int64_t, int64_t) {
    return acc;
  }

  // dX_I += G Y_J, and if asked dY_J += G' X_I, for `rows` rows of G from row i on and `columns` columns from j on.
  static SSL_INLINE void add_gradients(const Sweep<T>& s, const T* G, int64_t i, int64_t rows, int64_t j,
                                       int64_t columns, bool y_too, T*) {
    constexpr int64_t P = panel<T>;
    const Side<T>&x = *s.x, &y = *s.y;
    for (int64_t c = 0; c < s.chunks; ++c) {
      const int64_t width = s.width - c * P;
      if (x.g)
        for (int64_t k = 0; k < columns; k += depth) {
          const int64_t n = columns - k < depth ? columns - k : depth;
          add_product<T>(width, g_row(x, c, i), rows, x.g_row, G + k, columns, 1, z_row(y, c, j + k), P, n);
        }
      if (y_too) add_product<T>(width, g_row(y, c, j), columns, y.g_row, G, 1, columns, z_row(x, c, i), P, rows);
    }
  }
  static constexpr int64_t scratch = 0;  // what add_gradients wants
};

// Which entries of a tile are left out: 0 where left out, 1 elsewhere, and the positives' products on the way.
template <class T, int R>
__attribute__((noinline)) void mask_tile(const Sweep<T>& s, const T* products, int64_t i, int64_t j, bool both_sides,
                                         T* keep) {
  constexpr int64_t P = panel<T>;
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < P; ++c) keep[r * P + c] = j + c < s.y->rows ? T(1) : T(0);
  for (int64_t r = 0; r < R; ++r) {
    const int64_t row = i + r;
    for (int64_t column = s.rule.first(row, j); column < j + P && column < s.y->rows; column += s.rule.period) {
      keep[r * P + column - j] = 0;
      if (s.pos && !(s.self() && column == row))
        set_positive(s, row, column, products[r * P + column - j], both_sides);
    }
  }
}

// Runs epilogue(Count<R>, products, row, panel, keep) over the tiles of a block; keep is null where nothing is left out.
template <class M, class T, class Epilogue>
SSL_INLINE void for_tiles(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* between,
                          Epilogue&& epilogue) {
  using Sum = typename M::Sum;
  constexpr int64_t P = panel<T>;
  alignas(64) T seen[MR * P], keep[MR * P];
  Sum* const partial = reinterpret_cast<Sum*>(between);  // sums between passes
  const bool both_sides = i0 != j0;
  // rows outermost: the strip's rows stay in L2 while the panels pass by
  for (int64_t ii = i0; ii < i1; ii += strip) {
    const int64_t rows = i1 - ii < strip ? i1 - ii : strip;
    for (int64_t j = j0; j < j1; j += P) {
      const bool touched = j + P > s.y->rows || s.rule.touches(ii, ii + rows, j, j + P);
      int64_t k0 = 0;
      auto begin = [&](auto& acc, auto count, int64_t r) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value;
        if (k0 == 0)
          clear<Sum, R, NV>(acc);
        else
          read<Sum, R, NV>(acc, partial + r * P, P);
      };
      for (; s.width - k0 > M::depth; k0 += M::depth)
        for_row_groups(rows, [&](auto count, int64_t r) __attribute__((always_inline)) {
          constexpr int R = decltype(count)::value;
          Acc<Sum, R> acc;
          begin(acc, count, r);
          M::template logits_pass<R>(s, acc, ii + r, j, k0, k0 + M::depth);
          write<Sum, R, NV>(acc, partial + r * P, P);
        });
      for_row_groups(rows, [&](auto count, int64_t r) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value;
        const int64_t i = ii + r;
        Acc<Sum, R> acc;
        begin(acc, count, r);
        M::template logits_pass<R>(s, acc, i, j, k0, s.width);
        Acc<T, R> room;
        Acc<T, R>& products = M::template products<R>(s, acc, room, i, j);
        const bool mask = touched && (j + P > s.y->rows || s.rule.touches(i, i + R, j, j + P));
        if (__builtin_expect(mask, 0)) {
          write<T, R, NV>(products, seen, P);
          mask_tile<T, R>(s, seen, i, j, both_sides, keep);
        }
        epilogue(count, products, i, j, mask ? keep : nullptr);
      });
    }
  }
}

template <class T> SSL_INLINE Vec<T> kept(Vec<T> e, const T* keep) { return load<T>(keep) != T(0) ? e : Vec<T>{}; }

// ------------------------------------------------------------------------------------------------------- forward
// Do the columns of a block get sums of their own? On the diagonal of a set against itself they are its rows.
template <class T> SSL_INLINE bool columns_count(const Sweep<T>& s, int64_t i0, int64_t j0) {
  return s.self() ? i0 != j0 : s.y->sum != nullptr;
}

// Row sums gather in lanes, column sums in one panel; both sides' totals are added once a block, in double.
template <class M, bool Keep, class T = typename M::T>
SSL_INLINE void forward_fixed(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  T *partial = scratch, *row_sums = partial + strip * P, *column_sums = row_sums + (i1 - i0) * L;
  memset(row_sums, 0, ((i1 - i0) * L + (j1 - j0)) * sizeof(T));
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low), shift = splat<T>(s.shift);
  for_tiles<M>(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
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
        if constexpr (Keep) store<T>(s.entries + (i + r) * s.y->padded + j + v * L, e);
        row += e;
        column[v] += e;
      }
      store<T>(row_sums + (i - i0 + r) * L, row);
    }
    for (int v = 0; v < NV; ++v) store<T>(column_sums + (j - j0) + v * L, column[v]);
  });
  for (int64_t i = i0; i < i1; ++i) s.x->sum[i] += sum_lanes<T>(load<T>(row_sums + (i - i0) * L));
  if (columns_count(s, i0, j0))
    for (int64_t j = j0; j < j1; ++j) s.y->sum[j] += column_sums[j - j0];
}

// With a running maximum a lane (of rows, or of columns) at a time: an exponential for each side of an entry.
template <class M, class T = typename M::T>
SSL_INLINE void forward_running(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  const int64_t lanes_of_rows = (i1 - i0) * L, columns = j1 - j0;
  T *partial = scratch, *row_sums = partial + strip * P, *column_sums = row_sums + lanes_of_rows,
    *row_tops = column_sums + columns, *column_tops = row_tops + lanes_of_rows;
  memset(row_sums, 0, (lanes_of_rows + columns) * sizeof(T));
  for (int64_t k = 0; k < lanes_of_rows + columns; ++k) row_tops[k] = masked<T>;
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low);
  const bool columns_too = columns_count(s, i0, j0);
  for_tiles<M>(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
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
    for (int v = 0; v < NV && columns_too; ++v) {
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
    for (int64_t k = 0; k < L; ++k) merge(*s.x, i, row_tops[(i - i0) * L + k], row_sums[(i - i0) * L + k]);
  if (columns_too)
    for (int64_t j = j0; j < j1; ++j) merge(*s.y, j, column_tops[j - j0], column_sums[j - j0]);
}

template <class M, class T = typename M::T>
void forward(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  FlushDenormals flush;
  i1 = i1 < s.x->rows ? i1 : s.x->rows;
  if (s.running)
    forward_running<M>(s, i0, i1, j0, j1, scratch);
  else if (s.entries)
    forward_fixed<M, true>(s, i0, i1, j0, j1, scratch);
  else
    forward_fixed<M, false>(s, i0, i1, j0, j1, scratch);
}

// ------------------------------------------------------------------------------------------------------ backward
// What an entry puts into G, and what the sweep adds up besides.
enum class Entry {
  fixed,     // both sides' softmax, under a fixed shift
  kept,      // the same, from the entries that the forward sweep kept
  running,   // both sides' softmax, each from its own sum
  rows,      // that of rows alone
  attend,    // a row's softmax before it is divided by its sum, and the sum
  softplus,  // sigmoid(t), and the sum of softplus(t)
};

// log(1 + e) for e in [0, 1]: polynomials of our own Chebyshev interpolation of log(1 + e) / e, relative error 5.2e-09
// (float) and 1.7e-18 (double).
SSL_INLINE Vec<float> log1p_fraction(Vec<float> e) {
  Vec<float> p = e * -3.176057e-03f + 1.9542526e-02f;
  p = p * e - 5.637361e-02f;
  p = p * e + 1.05436236e-01f;
  p = p * e - 1.5269667e-01f;
  p = p * e + 1.9663274e-01f;
  p = p * e - 2.4951616e-01f;
  p = p * e + 3.332971e-01f;
  p = p * e - 4.9999893e-01f;
  return p * e + 1.e+00f;
}
SSL_INLINE Vec<double> log1p_fraction(Vec<double> e) {
  Vec<double> p = e * -1.6020216725538194e-05 + 0.00019330794553431145;
  p = p * e - 0.0011093809681700342;
  p = p * e + 0.004047809893467512;
  p = p * e - 0.01061469636358553;
  p = p * e + 0.021511022653356974;
  p = p * e - 0.03553052540144125;
  p = p * e + 0.05007742395391704;
  p = p * e - 0.06288754670783146;
  p = p * e + 0.07329015255534954;
  p = p * e - 0.08207163680437429;
  p = p * e + 0.09055567515590733;
  p = p * e - 0.09992127821760016;
  p = p * e + 0.11109740896460193;
  p = p * e - 0.12499817769513955;
  p = p * e + 0.14285696309567308;
  p = p * e - 0.16666665403691092;
  p = p * e + 0.19999999940349814;
  p = p * e - 0.2499999999826481;
  p = p * e + 0.3333333333330646;
  p = p * e - 0.49999999999999833;
  return p * e + 1.0;
}

// softplus(t), in nats, and sigmoid(t) for t in base 2.
template <class T> struct SoftplusOf {
  Vec<T> value, share;
};
template <class T> SSL_INLINE SoftplusOf<T> softplus_of(Vec<T> t) {
  const Vec<T> zero{}, e = exp2<T>(t < zero ? t : -t), upper = T(1) / (T(1) + e);
  const Vec<T> value = e * log1p_fraction(e) + (t > zero ? t * T(0.693147180559945309417) : zero);
  return {t == t ? value : t, t > zero ? upper : e * upper};
}

template <class M, Entry E, class T = typename M::T>
SSL_INLINE void gradient_tile(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* partial, T* G,
                              T* sums) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  const int64_t stride = j1 - j0;
  const Vec<T> scale = splat<T>(s.scale2), scale_low = splat<T>(s.scale2_low), shift = splat<T>(s.shift);
  for_tiles<M>(s, i0, i1, j0, j1, partial, [&](auto count, auto& acc, int64_t i, int64_t j, const T* keep)
                                            __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    auto less = [&](int r, int v, Vec<T> neg2) __attribute__((always_inline)) {
      return exp2<T>((acc[r][v] * scale - neg2) + acc[r][v] * scale_low);
    };
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      T* const row_sums = sums + 2 * (i - i0 + r) * L;  // and slopes
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const int64_t column = j + v * L;
        Vec<T> g;
        if constexpr (E == Entry::fixed) {
          g = exp2<T>(acc[r][v] * scale + (acc[r][v] * scale_low - shift)) *
              (splat<T>(s.x->weight[i + r]) + load<T>(s.y->weight + column));
        } else if constexpr (E == Entry::running) {
          g = less(r, v, splat<T>(s.x->neg2[i + r])) * splat<T>(s.x->weight[i + r]) +
              less(r, v, load<T>(s.y->neg2 + column)) * load<T>(s.y->weight + column);
        } else if constexpr (E == Entry::rows) {
          g = less(r, v, splat<T>(s.x->neg2[i + r])) * splat<T>(s.x->weight[i + r]);
        } else if constexpr (E == Entry::attend) {
          g = exp2<T>(acc[r][v] * scale + (acc[r][v] * scale_low - shift));
        } else {
          auto [value, share] = softplus_of<T>(acc[r][v] * scale + (acc[r][v] * scale_low + splat<T>(s.bias2)));
          g = share;
          if (__builtin_expect(keep != nullptr, 0)) value = kept<T>(value, keep + r * P + v * L);
          store<T>(row_sums, load<T>(row_sums) + value);
        }
        if (__builtin_expect(keep != nullptr, 0)) g = kept<T>(g, keep + r * P + v * L);
        if constexpr (E == Entry::attend) store<T>(row_sums, load<T>(row_sums) + g);
        if constexpr (E == Entry::softplus) store<T>(row_sums + L, load<T>(row_sums + L) + g);
        store<T>(G + (i - i0 + r) * stride + (j - j0) + v * L, g);
      }
    }
  });
}

template <class T>
SSL_INLINE void gradient_of_kept(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* G) {
  for (int64_t i = i0; i < i1; ++i, G += j1 - j0) {
    const T* const entries = s.entries + i * s.y->padded;
    const Vec<T> weight = splat<T>(s.x->weight[i]);
    for (int64_t j = j0; j < j1; j += lanes<T>)
      store<T>(G + j - j0, load<T>(entries + j) * (weight + load<T>(s.y->weight + j)));
  }
}

// dX_I += G Y_J and dY_J += G' X_I, a strip of rows of G at a time
template <class M, Entry E, class T = typename M::T>
SSL_INLINE void gradient_block(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  FlushDenormals flush;
  constexpr int64_t P = panel<T>, L = lanes<T>;
  constexpr bool sums_too = E == Entry::attend || E == Entry::softplus;
  const Side<T>&x = *s.x, &y = *s.y;
  i1 = i1 < x.rows ? i1 : x.rows;
  const int64_t columns = j1 - j0;
  T *partial = scratch, *sums = partial + strip * P, *G = sums + 2 * strip * L, *more = G + strip * columns;
  const bool y_too = y.g && !(s.self() && i0 == j0);
  for (int64_t ii = i0; ii < i1; ii += strip) {
    const int64_t rows = i1 - ii < strip ? i1 - ii : strip;
    if constexpr (sums_too) memset(sums, 0, 2 * rows * L * sizeof(T));
    if constexpr (E == Entry::kept)
      gradient_of_kept(s, ii, ii + rows, j0, j1, G);
    else
      gradient_tile<M, E>(s, ii, ii + rows, j0, j1, partial, G, sums);
    if constexpr (sums_too)
      for (int64_t r = 0; r < rows; ++r) {
        x.sum[ii + r] += sum_lanes<T>(load<T>(sums + 2 * r * L));
        if constexpr (E == Entry::softplus) s.slope[ii + r] += sum_lanes<T>(load<T>(sums + (2 * r + 1) * L));
      }
    M::add_gradients(s, G, ii, rows, j0, columns, y_too, more);
  }
}

template <class M, class T = typename M::T>
void backward(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  if (!s.running && s.entries)
    gradient_block<M, Entry::kept>(s, i0, i1, j0, j1, scratch);
  else if (!s.running)
    gradient_block<M, Entry::fixed>(s, i0, i1, j0, j1, scratch);
  else if (s.y->weight)
    gradient_block<M, Entry::running>(s, i0, i1, j0, j1, scratch);
  else
    gradient_block<M, Entry::rows>(s, i0, i1, j0, j1, scratch);
}
template <class M, class T = typename M::T>
void attend(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  gradient_block<M, Entry::attend>(s, i0, i1, j0, j1, scratch);
}
template <class M, class T = typename M::T>
void softplus(const Sweep<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  gradient_block<M, Entry::softplus>(s, i0, i1, j0, j1, scratch);
}

// A power of two that splits the rows into some 32 blocks: half as many pairs can run at once. Larger blocks reuse more
// of what the caches hold, but from 512 rows on a block's strip of the gradient leaves the L2 cache.
template <class T> int64_t block_of(const Side<T>& side) {
  constexpr int64_t P = panel<T>;
  int64_t block = 64;
  while (block < 512 && block * 32 < side.rows) block *= 2;
  return (block + P - 1) / P * P;
}

template <class M, class T = typename M::T> Layout layout(const Sweep<T>& s) {
  constexpr int64_t P = panel<T>, L = lanes<T>;
  // Rows alone share out the columns, so that nothing keeps a block of rows short
  const int64_t all = s.x->padded < 512 ? s.x->padded : 512;
  const int64_t rows = s.rows_alone ? all : block_of(*s.x), columns = block_of(*s.y);
  const int64_t forward = 2 * (rows * L + columns), backward = strip * (2 * L + columns) + M::scratch;
  return {rows, columns, strip * P + (forward > backward ? forward : backward)};
}

template <class T> Memory memory(const Sweep<T>& s, const Side<T>& side) {
  return {cells(s, side), &side == s.y ? side.padded * s.width : 0, 0};
}

template <class T> constexpr Kernels<T> kernels() {
  using M = Plain<T>;
  return {panel<T>, true, layout<M>, memory<T>, pack<T>, forward<M>, backward<M>, attend<M>, softplus<M>, finish<T>};
}

}  // namespace ssl::SSL_ISA
