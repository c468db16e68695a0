// Products of rows on a grid of 16-bit integers, two an instruction and lane, for numbers that need not stay exact.
//
// Every row is stretched to the length 32767. What two of them multiply to, and every sum on the way there, is then at
// most the product of their lengths and fits into 32 bits: sums are exact, and all that is lost is the rounding of the
// entries, 2^-16 of a row's length, whatever the width.
#pragma once
#include "tiles.h"

namespace ssl::SSL_ISA {

constexpr float grid = 32767;
// Numbers below do not divide the grid in range; so short, they are as good as none.
constexpr float shortest = 1e-34f, infinite = __builtin_inff();

inline int64_t pairs_of(const Sweep<float>& s) { return (s.width + 1) / 2; }

// A side on the grid, in its zt. A pair is two 16-bit integers in the place of one of 32; rows are counted from the
// first packed one.
struct Grid {
  const Side<float>& side;
  const int64_t pairs;   // of columns
  float* const factor;   // [padded]: x_i = factor_i (row i on the grid) / grid
  float* const squares;  // [padded / panel]: the most that a column's squares add up to, in a panel of rows

  // Only left operands of the logits go in row by row, right ones transposed; of the gradient's, all that there may be.
  Grid(const Sweep<float>& s, const Side<float>& side)
      : side(side), pairs(pairs_of(s)), factor(side.zt), squares(factor + side.padded),
        left_(reinterpret_cast<int32_t*>(squares + whole_lines(side))), right_(left_ + left_size(s, side)),
        both_(right_ + right_size(s, side)) {}

  static int64_t floats(const Sweep<float>& s, const Side<float>& side) {
    return side.padded + whole_lines(side) + left_size(s, side) + right_size(s, side) +
           (s.gradient ? s.chunks * side.padded / 2 * panel<float> : 0);
  }

  // A row in pairs of columns, from those of a chunk on.
  int32_t* left(int64_t chunk, int64_t i) const { return left_ + (chunk * side.padded + i) * (panel<float> / 2); }
  // A panel of rows side by side, one pair of columns below the other.
  int32_t* right(int64_t i) const { return right_ + i * pairs; }
  // A chunk of columns side by side, one pair of rows below the other.
  int32_t* both(int64_t chunk, int64_t i) const { return both_ + (chunk * side.padded + i) / 2 * panel<float>; }

 private:
  static int64_t whole_lines(const Side<float>& side) { return (side.padded / panel<float> + 15) / 16 * 16; }
  static int64_t left_size(const Sweep<float>& s, const Side<float>& side) {
    return &side == s.x ? s.chunks * side.padded * panel<float> / 2 : 0;
  }
  static int64_t right_size(const Sweep<float>& s, const Side<float>& side) {
    return &side == s.y ? side.padded * pairs_of(s) : 0;
  }
  int32_t *left_, *right_, *both_;
};

#if SSL_VECTOR_BYTES == 64
SSL_INLINE Vec<int32_t> rounded(Vec<float> x) { return (Vec<int32_t>)_mm512_cvtps_epi32((__m512)x); }
SSL_INLINE Vec<int32_t> paired(Vec<int32_t> low, Vec<int32_t> high) {
  return (Vec<int32_t>)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)low, _mm512_slli_epi32((__m512i)high, 16));
}
// Integers as half as many pairs of neighbours.
SSL_INLINE void store_pairs(int32_t* to, Vec<int32_t> x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16((__m512i)x));
}
#else
SSL_INLINE Vec<int32_t> rounded(Vec<float> x) { return (Vec<int32_t>)_mm256_cvtps_epi32((__m256)x); }
SSL_INLINE Vec<int32_t> paired(Vec<int32_t> low, Vec<int32_t> high) {
  return (Vec<int32_t>)_mm256_blend_epi16((__m256i)low, _mm256_slli_epi32((__m256i)high, 16), 0xaa);
}
SSL_INLINE void store_pairs(int32_t* to, Vec<int32_t> x) {
  const __m128i low = _mm256_castsi256_si128((__m256i)x), high = _mm256_extracti128_si256((__m256i)x, 1);
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi32(low, high));
}
#endif
SSL_INLINE Vec<float> as_numbers(Vec<int32_t> x) { return __builtin_convertvector(x, Vec<float>); }

// Rows come from the caller's memory, once for their lengths and once to be put on the grid; there is no z.
template <class Format>
void pack_on_grid(const Sweep<float>& s, const Side<float>& side, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t P = panel<float>, L = lanes<float>;
  const Grid to(s, side);
  alignas(64) int32_t rows[P][P / 2];
  alignas(64) float room[2][P];
  const typename Format::Element* from[P];
  float stretch[P];
  for (int64_t p = first_panel; p < last_panel; ++p) {
    const int64_t at = p * P, i0 = side.first + at, there = side.rows - i0 < P ? side.rows - i0 : P;
    RowCursor cursor(side.parts, side.part_count, i0);
    for (int64_t r = 0; r < P; ++r) {
      to.factor[at + r] = stretch[r] = 1;
      from[r] = row_of<Format>(cursor);  // of a row that is not there nothing is read
      if (r >= there) continue;
      cursor.next();
      const float norm = side.norm[at + r] = norm_of<Format, float>(from[r], s.width);
      const float length = s.normalize ? divisor(norm) : norm < shortest ? shortest : norm;
      stretch[r] = grid / length;
      if (!s.normalize) to.factor[at + r] = length;
      if (norm < infinite) continue;
      // NaN has no place on the grid, nor has infinity without a length to divide by
      for (int64_t k = 0; k < s.width; ++k)
        to.factor[at + r] += Format::template read<float>(from[r][k]) * stretch[r] * 0;
    }
    float most = 0;
    for (int64_t c = 0; c < s.chunks; ++c) {
      Vec<float> columns[NV] = {};
      for (int64_t r = 0; r < P; r += 2) {
        const float* x[2];
        for (int k = 0; k < 2; ++k)
          x[k] = read_panel<Format>(from[r + k] + c * P, r + k < there ? s.width - c * P : 0, room[k]);
        for (int v = 0; v < NV; ++v) {
          Vec<int32_t> whole[2];
          for (int k = 0; k < 2; ++k) {
            const Vec<float> stretched = load<float>(x[k] + v * L) * splat(stretch[r + k]);
            columns[v] += stretched * stretched;
            whole[k] = rounded(stretched);
            store_pairs(rows[r + k] + v * L / 2, whole[k]);
          }
          if (s.gradient) store<int32_t>(to.both(c, at + r) + v * L, paired(whole[0], whole[1]));
        }
      }
      for (int v = 0; v < NV; ++v) most = larger(most, largest_lane<float>(columns[v]));
      if (&side == s.x) memcpy(to.left(c, at), rows, sizeof rows);
      if (&side != s.y) continue;
      const int64_t k = c * P / 2, left = to.pairs - k;
      transpose_panel<int32_t>(rows[0], P / 2, left < P / 2 ? left : P / 2, to.right(at) + k * P);
    }
    to.squares[p] = most;
  }
}
inline void pack_rows_on_grid(const Sweep<float>& s, const Side<float>& side, int64_t first_panel, int64_t last_panel) {
  if (s.dtype == DType::bf16)
    pack_on_grid<BF16>(s, side, first_panel, last_panel);
  else
    pack_on_grid<F32>(s, side, first_panel, last_panel);
}

// What of G is multiplied at a time, once with every row on a grid of its own, the left operand of G Y, and once with
// every column, that of G' X.
struct PieceOfG {
  static constexpr int64_t side = strip;
  int32_t by_rows[side][side / 2], by_columns[side / 2][side];  // pairs of columns, of rows
  float row_unit[side], column_unit[side];                      // G_ij factor = unit * the integer
};

// The largest integer that may stand in a row of G beside `count` rows of a side, from the i-th packed one on: by Cauchy
// and Schwarz no sum of their products leaves 32 bits then.
SSL_INLINE float largest_beside(const Grid& z, int64_t i, int64_t count) {
  float squares = 0;
  for (int64_t at = i; at < i + count; at += panel<float>) squares += z.squares[at / panel<float>];
  constexpr float room = 0.98f * 2147483648.f;  // the rest is for what rounding adds
  // An integer, so that a softmax's one large entry, or its many equal ones, are not rounded at all
  const float largest = std::floor(room / std::sqrt(float(PieceOfG::side) * squares));
  return largest < grid ? largest : grid;
}

// The bits of |x|: they compare as the numbers do, and NaN is the largest.
SSL_INLINE Vec<int32_t> magnitude(Vec<float> x) { return (Vec<int32_t>)x & 0x7fffffff; }

// G_ij factor_j by rows and, if asked, factor_i G_ij by columns, for N vectors of columns of G, or half of them and so
// on; `largest` and so on as above.
template <bool Columns, int N = PieceOfG::side / lanes<float>>
void put_on_grids(int64_t columns, const float* G, int64_t stride, int64_t rows, const float* factor_i,
                  const float* factor_j, float largest_in_row, float largest_in_column, PieceOfG& to) {
  constexpr int L = lanes<float>;
  if constexpr (N > NV) {
    if (columns < N * L)
      return put_on_grids<Columns, N / 2>(columns, G, stride, rows, factor_i, factor_j, largest_in_row,
                                          largest_in_column, to);
  }
  Vec<int32_t> tops[N] = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vec<float> row[N];
    Vec<int32_t> top{};
    for (int v = 0; v < N; ++v) {
      const Vec<float> g = load<float>(G + r * stride + v * L);
      row[v] = g * load<float>(factor_j + v * L);
      top = larger(top, magnitude(row[v]));
      if constexpr (Columns) tops[v] = larger(tops[v], magnitude(g * splat(factor_i[r])));
    }
    const int32_t bits = largest_lane<int32_t>(top);
    float most;
    memcpy(&most, &bits, sizeof most);
    if (most < shortest) most = shortest;  // NaN stays
    to.row_unit[r] = most / largest_in_row;
    for (int v = 0; v < N; ++v) store_pairs(to.by_rows[r] + v * L / 2, rounded(row[v] * splat(largest_in_row / most)));
  }
  for (int v = 0; v < N && Columns; ++v) {
    const Vec<float> found = (Vec<float>)tops[v], least = splat(shortest), most = found < least ? least : found;
    const Vec<float> stretch = largest_in_column / most;
    store<float>(to.column_unit + v * L, most / largest_in_column);
    for (int64_t r = 0; r < rows; r += 2) {
      Vec<int32_t> pair[2] = {};
      for (int64_t k = 0; k < 2 && r + k < rows; ++k)
        pair[k] = rounded(load<float>(G + (r + k) * stride + v * L) * splat(factor_i[r + k]) * stretch);
      store<int32_t>(to.by_columns[r / 2] + v * L, paired(pair[0], pair[1]));
    }
  }
}

// c[r][:] += unit[r] * sum_k a(r, k) . b[k][:] / grid, in pairs; all else as add_product of tile.h has it.
template <int V = NV>
void add_pairs(int64_t columns, float* c, int64_t rows, int64_t stride, const int32_t* a, int64_t a_row, int64_t a_step,
               const int32_t* b, int64_t pairs, const float* unit) {
  constexpr int64_t P = panel<float>, L = lanes<float>;
  if constexpr (V > 1) {
    if (columns <= (V - 1) * L) return add_pairs<V - 1>(columns, c, rows, stride, a, a_row, a_step, b, pairs, unit);
  }
  for_row_groups(rows, [&](auto count, int64_t first) __attribute__((always_inline)) {
    constexpr int R = decltype(count)::value;
    fetch_ahead<R, V>(c + first * stride, stride);
    Acc<int32_t, R, V> acc;
    clear<int32_t, R, V>(acc);
    multiply_add<int32_t, R, V>(acc, a + first * a_row, a_row, a_step, b, P, pairs);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* const to = c + (first + r) * stride + v * L;
        store<float>(to, load<float>(to) + splat(unit[first + r]) * (as_numbers(acc[r][v]) * (1 / grid)));
      }
  });
}

// As Plain of tiles.h.
struct OnGrid {
  using T = float;
  using Sum = int32_t;
  static constexpr int64_t depth = 2 * depth_block;  // the same bytes

  template <int R>
  static SSL_INLINE void logits_pass(const Sweep<float>& s, Acc<int32_t, R>& acc, int64_t i, int64_t j, int64_t k0,
                                     int64_t k1) {
    constexpr int64_t P = panel<float>;
    const Grid x(s, *s.x), y(s, *s.y);
    const int32_t* const b = y.right(j - s.y->first);
    for (int64_t k = k0; k < k1; k += P) {
      const int64_t n = k1 - k < P ? k1 - k : P;
      multiply_add<int32_t, R, NV>(acc, x.left(k / P, i - s.x->first), P / 2, 1, b + k / 2 * P, P, (n + 1) / 2);
    }
  }
  template <int R>
  static SSL_INLINE Acc<float, R>& products(const Sweep<float>& s, Acc<int32_t, R>& acc, Acc<float, R>& out, int64_t i,
                                            int64_t j) {
    const float* const x = Grid(s, *s.x).factor + (i - s.x->first);
    const float* const y = Grid(s, *s.y).factor + (j - s.y->first);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<float> factor = splat(x[r] * (1 / (grid * grid)));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) out[r][v] = as_numbers(acc[r][v]) * (factor * load<float>(y + v * lanes<float>));
    }
    return out;
  }

  static void add_gradients(const Sweep<float>& s, const float* G, int64_t i, int64_t rows, int64_t j, int64_t columns,
                            bool y_too, float* memory) {
    constexpr int64_t P = panel<float>, side = PieceOfG::side;
    const Grid x(s, *s.x), y(s, *s.y);
    PieceOfG& piece = *reinterpret_cast<PieceOfG*>(memory);
    const int64_t at = i - s.x->first;
    for (int64_t k = 0, n = side; k < columns; k += n) {
      while (n > columns - k) n /= 2;  // as many as a panel at last
      const int64_t beside = j + k - s.y->first;
      auto* const put = y_too ? put_on_grids<true> : put_on_grids<false>;
      put(n, G + k, columns, rows, x.factor + at, y.factor + beside, largest_beside(y, beside, n),
          largest_beside(x, at, rows), piece);
      for (int64_t c = 0; c < s.chunks; ++c) {
        const int64_t width = s.width - c * P;
        if (s.x->g)
          add_pairs(width, g_row(*s.x, c, i), rows, s.x->g_row, piece.by_rows[0], side / 2, 1, y.both(c, beside), n / 2,
                    piece.row_unit);
        if (y_too)
          add_pairs(width, g_row(*s.y, c, j + k), n, s.y->g_row, piece.by_columns[0], 1, side, x.both(c, at),
                    (rows + 1) / 2, piece.column_unit);
      }
    }
  }
  static constexpr int64_t scratch = sizeof(PieceOfG) / sizeof(float);
};

inline Memory memory_of_grid(const Sweep<float>& s, const Side<float>& side) {
  return {0, Grid::floats(s, side), 0};
}

// A grid is finer than bfloat16 and not always than float16.
inline bool may_round(const Sweep<float>& s) {
  const bool coarse = s.dtype == DType::bf16 || (s.dtype == DType::f32 && s.precision != Precision::highest);
  return coarse && many_rows(s);
}

// A function of the kernels: on the grid what may be rounded, and the rest exact.
template <const Kernels<float>& (*Exact)(), auto Member> struct Either;
template <const Kernels<float>& (*Exact)(), class R, class... More, R (*Kernels<float>::*Member)(const Sweep<float>&, More...)>
struct Either<Exact, Member> {
  static R run(const Sweep<float>& s, More... more) {
    static constexpr Kernels<float> on_grid{
        panel<float>,    true,             layout<OnGrid>, memory_of_grid,   pack_rows_on_grid,
        forward<OnGrid>, backward<OnGrid>, attend<OnGrid>, softplus<OnGrid>, finish<float, CallersRow<float>>};
    return ((may_round(s) ? on_grid : Exact()).*Member)(s, more...);
  }
};

// The kernels of an instruction set with integers, beside exact ones whose panels are as wide.
template <const Kernels<float>& (*Exact)()> Kernels<float> kernels_with_grid() {
  using K = Kernels<float>;
  return {panel<float>,
          Exact().keeps_entries,
          Either<Exact, &K::layout>::run,
          Either<Exact, &K::memory>::run,
          Either<Exact, &K::pack>::run,
          Either<Exact, &K::forward>::run,
          Either<Exact, &K::backward>::run,
          Either<Exact, &K::attend>::run,
          Either<Exact, &K::softplus>::run,
          Either<Exact, &K::finish>::run};
}

}  // namespace ssl::SSL_ISA
