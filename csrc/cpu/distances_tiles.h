// The sweep over one pair of blocks of points: a tile of squared distances at a time in registers, and what they feed.
// Distances are sums of squared differences: |x|^2 + |y|^2 - 2 x.y has no digits left for points close together.
#pragma once
#include "points_tiles.h"

namespace ssl::SSL_ISA {

// Between any two finite points: what overflows is as far away as it gets.
template <class T> constexpr T furthest = T(sizeof(T) == 8 ? 1e300 : 1e37);

// 1 / x to the last bit or two, for 1 <= x.
template <class T> SSL_INLINE Vec<T> reciprocal(Vec<T> x) {
#if defined(__AVX512F__) && SSL_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {  // an estimate and a Newton step: half the time of a division
    const Vec<T> r = (Vec<T>)_mm512_rcp14_ps((__m512)x);
    return r + r * (1 - x * r);
  }
#endif
  return 1 / x;
}

// log(1 + x) for x >= 0, all its digits near 0 too: log u for u = 1 + x rounded, and what the rounding lost over u.
template <class T> SSL_INLINE Vec<T> log1p(Vec<T> x) {
  using S = Simd<T>;
  using Bits = typename S::Bits;
  const Vec<T> u = 1 + x;
  const Bits half = (Bits)splat<T>(T(0.70710678118654752440));
  const Bits exponent = ((Bits)u - half) >> S::exponent_shift;
  const Vec<T> f = (Vec<T>)((Bits)u - (exponent << S::exponent_shift)) - 1;  // u / 2^exponent - 1, in [-0.29, 0.41]
  const Vec<T> s = f * reciprocal<T>(2 + f), z = s * s;  // log(1 + f) = 2 atanh(s), |s| < 0.172: its own series
  Vec<T> p{};
#pragma GCC unroll 16
  for (int k = sizeof(T) == 8 ? 11 : 5; k > 0; --k) p = (p + T(1.0 / (2 * k + 1))) * z;
  return __builtin_convertvector(exponent, Vec<T>) * T(0.69314718055994530942) + (2 * s + 2 * s * p) +
         (x - (u - 1)) * reciprocal<T>(u);
}

// Rows of a tile of distances: they divide every panel, so that there is no smaller tile to compile for the last ones.
constexpr int rows_at_once = 4;
template <class T> using Tile = Acc<T, rows_at_once>;

// d2[r][:] = |z_i+r - z_j|^2 for a tile of rows and a panel of columns. W: the width where it is known, or 0.
template <class T, int W>
SSL_INLINE void squared_distances(const Points<T>& p, Tile<T>& d2, int64_t i, int64_t j) {
  constexpr int R = rows_at_once;
  constexpr int64_t P = panel<T>;
  const T *a = point(p, p.z, i), *b = point(p, p.z, j);
  clear<T, R, NV>(d2);
  const int64_t width = W ? W : p.width;
  for (int64_t k = 0; k < width; ++k, a += P, b += P) {
    Vec<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load<T>(b + v * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> av = splat<T>(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const Vec<T> difference = av - bv[v];
        d2[r][v] += difference * difference;
      }
    }
  }
}

// NaN stays NaN.
template <class T> SSL_INLINE Vec<T> at_most_furthest(Vec<T> x) {
  const Vec<T> most = splat<T>(furthest<T>);
  return x > most ? most : x;
}

// inner d2. Only where nothing underflows, which is all that Cauchy serves, is nothing too far away either; and there the
// factor's own rounding is none of a logit.
template <class T, Decay K> SSL_INLINE Vec<T> inside(const StudentLse<T>& s, Vec<T> d2) {
  if constexpr (K == Decay::cauchy) return d2 * s.inner;
  const Vec<T> d = at_most_furthest<T>(d2);
  return at_most_furthest<T>(d * s.inner + d * s.inner_low);
}

// The logit over its outer factor.
template <class T, Decay K> SSL_INLINE Vec<T> logit(const StudentLse<T>& s, Vec<T> d2) {
  return K == Decay::gaussian ? at_most_furthest<T>(d2) : log1p<T>(inside<T, K>(s, d2));
}

// 1 where a pair of a tile counts; 0 where it is of one sample, or past the last point.
template <class T> __attribute__((noinline)) void mask_pairs(const StudentLse<T>& s, int64_t i, int64_t j, T* keep) {
  constexpr int64_t P = panel<T>;
  for (int64_t r = 0; r < rows_at_once; ++r) {
    for (int64_t c = 0; c < P; ++c) keep[r * P + c] = i + r < s.points.rows && j + c < s.points.rows ? T(1) : T(0);
    for (int64_t column = s.rule.first(i + r, j); column < j + P; column += s.rule.period) keep[r * P + column - j] = 0;
  }
}

// Runs epilogue(d2, first column, keep) over a block's columns, a panel at a time; keep is null where all pairs count.
template <class T, int W, class Epilogue>
SSL_INLINE void for_columns(const StudentLse<T>& s, int64_t i, int64_t j0, int64_t j1, Epilogue&& epilogue) {
  constexpr int64_t P = panel<T>;
  alignas(64) T keep[rows_at_once * P];
  for (int64_t j = j0; j < j1; j += P) {
    Tile<T> d2;
    squared_distances<T, W>(s.points, d2, i, j);
    const int64_t last = i + rows_at_once;
    const bool masked = last > s.points.rows || j + P > s.points.rows || s.rule.touches(i, last, j, j + P);
    if (__builtin_expect(masked, 0)) mask_pairs(s, i, j, keep);
    epilogue(d2, j, masked ? keep : nullptr);
  }
}

template <class T> SSL_INLINE Vec<T> counted(Vec<T> e, const T* keep) { return load<T>(keep) != T(0) ? e : Vec<T>{}; }

// ------------------------------------------------------------------------------------------------------- forward
// Nothing underflows: one value serves the row and the column. A block's sums are added up in double.
template <class T, int W, Decay K>
void forward_fixed(const StudentLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* column_sums) {
  constexpr int64_t P = panel<T>, L = lanes<T>, R = rows_at_once;
  memset(column_sums, 0, (j1 - j0) * sizeof(T));
  for (int64_t i = i0; i < i1; i += R) {
    Vec<T> row[R] = {};
    for_columns<T, W>(s, i, j0, j1, [&](Tile<T>& d2, int64_t j, const T* keep) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        Vec<T> column = load<T>(column_sums + (j - j0) + v * L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          Vec<T> e;
          if constexpr (K == Decay::cauchy) {
            e = reciprocal<T>(1 + inside<T, K>(s, d2[r][v]));
          } else {
            const Vec<T> y = logit<T, K>(s, d2[r][v]);
            e = exp2<T>(y * s.outer + y * s.outer_low);
          }
          if (__builtin_expect(keep != nullptr, 0)) e = counted<T>(e, keep + r * P + v * L);
          row[r] += e;
          column += e;
        }
        store<T>(column_sums + (j - j0) + v * L, column);
      }
    });
    for (int r = 0; r < R; ++r) s.sum[i + r] += sum_lanes<T>(row[r]);
  }
  if (i0 != j0)
    for (int64_t j = j0; j < j1; ++j) s.sum[j] += column_sums[j - j0];
}

// 2^(outer y), for differences y of any size.
template <class T> SSL_INLINE Vec<T> decayed(const StudentLse<T>& s, Vec<T> y) {
  return exp2<T>(larger(splat<T>(T(-1e4)), y * s.outer));
}

// Adds sum * 2^(outer y) to row i of a forward pass that counts from the nearest point.
template <class T> SSL_INLINE void add_from(const StudentLse<T>& s, int64_t i, T y, T sum) {
  if (y < s.near[i]) {
    s.sum[i] = s.sum[i] * __builtin_exp2((double(s.near[i]) - y) * s.outer) + sum;
    s.near[i] = y;
  } else {
    s.sum[i] += sum * __builtin_exp2((double(y) - s.near[i]) * s.outer);
  }
}

// Counting from the nearest point, a lane (of rows, or of columns) at a time: two exponentials an entry, one a side.
// They are of differences of y, which are exact where they count, however far away the nearest point is.
template <class T, int W, Decay K>
void forward_running(const StudentLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* column_sums) {
  constexpr int64_t P = panel<T>, L = lanes<T>, R = rows_at_once;
  T* column_near = column_sums + (j1 - j0);
  for (int64_t j = 0; j < j1 - j0; ++j) column_sums[j] = 0, column_near[j] = furthest<T>;
  for (int64_t i = i0; i < i1; i += R) {
    Vec<T> row_sum[R], row_near[R];
    for (int r = 0; r < R; ++r) row_sum[r] = Vec<T>{}, row_near[r] = splat<T>(furthest<T>);
    for_columns<T, W>(s, i, j0, j1, [&](Tile<T>& y, int64_t j, const T* keep) __attribute__((always_inline)) {
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < NV; ++v) {
          y[r][v] = logit<T, K>(s, y[r][v]);
          if (keep) y[r][v] = load<T>(keep + r * P + v * L) != T(0) ? y[r][v] : splat<T>(furthest<T>);
        }
      auto nearer = [&](Vec<T> near, int r, int v) __attribute__((always_inline)) {
        return y[r][v] > near ? near : y[r][v];
      };
      auto term = [&](Vec<T> near, int r, int v) __attribute__((always_inline)) {
        const Vec<T> e = decayed(s, y[r][v] - near);
        return keep ? counted<T>(e, keep + r * P + v * L) : e;
      };
      for (int v = 0; v < NV; ++v) {
        T *sums = column_sums + (j - j0) + v * L, *nears = column_near + (j - j0) + v * L;
        const Vec<T> before = load<T>(nears);
        Vec<T> near = before;
        for (int r = 0; r < R; ++r) near = nearer(near, r, v);
        Vec<T> sum = load<T>(sums) * decayed(s, before - near);
        for (int r = 0; r < R; ++r) sum += term(near, r, v);
        store<T>(sums, sum);
        store<T>(nears, near);
      }
      for (int r = 0; r < R; ++r) {
        Vec<T> near = row_near[r];
        for (int v = 0; v < NV; ++v) near = nearer(near, r, v);
        row_sum[r] *= decayed(s, row_near[r] - near);
        for (int v = 0; v < NV; ++v) row_sum[r] += term(near, r, v);
        row_near[r] = near;
      }
    });
    for (int r = 0; r < R; ++r)
      for (int64_t k = 0; k < L; ++k) add_from(s, i + r, row_near[r][k], row_sum[r][k]);
  }
  if (i0 != j0)
    for (int64_t j = j0; j < j1; ++j) add_from(s, j, column_near[j - j0], column_sums[j - j0]);
}

// ------------------------------------------------------------------------------------------------------ backward
// A few rows of A at a time, in the L1 cache: g_I += sum_j A (z_i - z_j) and g_J -= sum_i A (z_i - z_j).
template <class T, int W, Decay K, bool Running>
void gradient(const StudentLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* A) {
  constexpr int64_t P = panel<T>, L = lanes<T>, R = rows_at_once;
  const Points<T>& p = s.points;
  const int64_t columns = j1 - j0, width = W ? W : p.width;
  const bool both_sides = i0 != j0;
  double moment = 0;
  for (int64_t i = i0; i < i1; i += R) {
    Vec<T> moments{};
    for_columns<T, W>(s, i, j0, j1, [&](Tile<T>& d2, int64_t j, const T* keep) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<T> weight_i = splat<T>(s.weight[i + r]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<T> weight_j = load<T>(s.weight + j + v * L);
          Vec<T> q{}, a;
          if constexpr (K != Decay::gaussian) q = reciprocal<T>(1 + inside<T, K>(s, d2[r][v]));
          if constexpr (K == Decay::cauchy) {
            a = q * (weight_i + weight_j);
          } else {
            const Vec<T> y = logit<T, K>(s, d2[r][v]);
            if constexpr (Running)
              a = decayed(s, y - splat<T>(s.near[i + r])) * weight_i +
                  decayed(s, y - load<T>(s.near + j + v * L)) * weight_j;
            else
              a = exp2<T>(y * s.outer + y * s.outer_low) * (weight_i + weight_j);
          }
          if constexpr (K != Decay::gaussian) a *= q;
          if (__builtin_expect(keep != nullptr, 0)) a = counted<T>(a, keep + r * P + v * L);
          moments += a * d2[r][v];
          store<T>(A + r * columns + (j - j0) + v * L, a);
        }
      }
    });
    moment += sum_lanes<T>(moments);
    for (int64_t k = 0; k < width; ++k) {
      Vec<T> row[R] = {};
      const T* z_i = point(p, p.z, i) + k * P;
      for (int64_t j = j0; j < j1; j += P) {
        const T* z_j = point(p, p.z, j) + k * P;
        T* g_j = point(p, s.g, j) + k * P;
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<T> other = load<T>(z_j + v * L);
          Vec<T> column = load<T>(g_j + v * L);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) {
            const Vec<T> a = load<T>(A + r * columns + (j - j0) + v * L), difference = splat<T>(z_i[r]) - other;
            row[r] += a * difference;
            column -= a * difference;
          }
          if (both_sides) store<T>(g_j + v * L, column);
        }
      }
      T* g_i = point(p, s.g, i) + k * P;
      for (int r = 0; r < R; ++r) g_i[r] += sum_lanes<T>(row[r]);
    }
  }
  s.moment[i0 / s.block] += both_sides ? moment : 0.5 * moment;  // a block against itself meets every pair twice
}

// ------------------------------------------------------------------------------------- what the drivers call, by case
// Cauchy in the plane is what t-SimCNE is for: there the width is known to the compiler.
template <class T>
void student_forward(const StudentLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  using enum Decay;
  FlushDenormals flush;
  auto visit = forward_fixed<T, 0, cauchy>;
  if (s.decay == cauchy && s.points.width == 2) visit = forward_fixed<T, 2, cauchy>;
  if (s.decay == student) visit = s.running ? forward_running<T, 0, student> : forward_fixed<T, 0, student>;
  if (s.decay == gaussian) visit = s.running ? forward_running<T, 0, gaussian> : forward_fixed<T, 0, gaussian>;
  visit(s, i0, i1, j0, j1, scratch);
}

template <class T>
void student_backward(const StudentLse<T>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
  using enum Decay;
  FlushDenormals flush;
  auto visit = gradient<T, 0, cauchy, false>;
  if (s.decay == cauchy && s.points.width == 2) visit = gradient<T, 2, cauchy, false>;
  if (s.decay == student) visit = s.running ? gradient<T, 0, student, true> : gradient<T, 0, student, false>;
  if (s.decay == gaussian) visit = s.running ? gradient<T, 0, gaussian, true> : gradient<T, 0, gaussian, false>;
  visit(s, i0, i1, j0, j1, scratch);
}

// Rows of A, or the columns' sums and nearest.
constexpr int64_t student_scratch(int64_t block) { return rows_at_once * block; }

template <class T> void student_finish(const StudentLse<T>& s, T factor, int64_t i0, int64_t i1) {
  const Points<T>& p = s.points;
  with_dtype<T>(p.dtype, [&](auto format) {
    using Format = decltype(format);
    using Element = typename Format::Element;
    RowCursor at(p.parts, p.part_count, i0);
    for (int64_t i = i0; i < i1; ++i, at.next()) {
      Element* out = static_cast<Element*>(at.part->grad) + at.row * p.width;
      const T* g = point(p, s.g, i);
      for (int64_t k = 0; k < p.width; ++k) out[k] = Format::template write<T>(factor * g[k * panel<T>]);
    }
  });
}

}  // namespace ssl::SSL_ISA
