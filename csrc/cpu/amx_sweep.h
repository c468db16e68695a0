// The sweep over one pair of blocks on AMX: a tile of 32 x 32 logits at a time, whose exponentials are taken between
// the tile products of the next one, so that the matrix unit and the vector units work at the same time.
#pragma once
#include "amx_pack.h"
#include "results.h"
#include "tiles.h"

namespace ssl::SSL_ISA {

constexpr int64_t tile_side = 32;  // logits at a time: two by two registers, which four loads feed for four products
// The part of G that is kept for the gradient's products: split in two and laid out both ways it is 1 MiB, half of the
// L2 cache of the processors that have AMX.
constexpr int64_t strip_rows = 256, strip_columns = 512;

// ------------------------------------------------------------------------------------------------------- products
// Registers 0 .. 3, a square of two by two tiles, += [a0; a1] [b0, b1]. between() runs after every product.
template <class Between>
SSL_INLINE void multiply_square(const bf16* a0, const bf16* a1, const bf16* b0, const bf16* b1, Between&& between) {
  using namespace tiles;
  load<4>(a0, row_bytes);
  load<6>(b0, row_bytes);
  multiply_add<0, 4, 6>();
  between();
  load<7>(b1, row_bytes);
  multiply_add<1, 4, 7>();
  between();
  load<5>(a1, row_bytes);
  multiply_add<2, 5, 6>();
  between();
  multiply_add<3, 5, 7>();
  between();
}

// products[32][32] of the operands' rows i .. and j ..
template <class M, class Between>
SSL_INLINE void multiply_rows(const Operands<M>& x, const Operands<M>& y, int64_t i, int64_t j, float* products,
                              Between&& between) {
  i = (i - x.first) / 16;
  j = (j - y.first) / 16;
  tiles::zero<0>();
  tiles::zero<1>();
  tiles::zero<2>();
  tiles::zero<3>();
  for (const Term term : M::Logits::terms) {
    const bf16 *a0 = x.left(term.left, i, 0), *a1 = x.left(term.left, i + 1, 0);
    const bf16 *b0 = y.right(term.right, j, 0), *b1 = y.right(term.right, j + 1, 0);
    for (int64_t k = 0; k < x.steps * tile_elements; k += tile_elements)
      multiply_square(a0 + k, a1 + k, b0 + k, b1 + k, between);
  }
  constexpr int64_t stride = tile_side * sizeof(float);
  tiles::store<0>(products, stride);
  tiles::store<1>(products + 16, stride);
  tiles::store<2>(products + 16 * tile_side, stride);
  tiles::store<3>(products + 16 * tile_side + 16, stride);
}

// C += A B over rows x columns tiles, both even: left(part, row, k) and right(part, k, column) are tiles of the
// operands, at(row, column) one of C, its rows `stride` floats apart.
template <class S, class Left, class Right, class At>
SSL_INLINE void add_products(int64_t rows, int64_t columns, int64_t depth, int64_t stride, Left&& left, Right&& right,
                             At&& at) {
  const int64_t bytes = stride * sizeof(float);
  for (int64_t c = 0; c < columns; c += 2)
    for (int64_t r = 0; r < rows; r += 2) {
      float *c00 = at(r, c), *c01 = at(r, c + 1), *c10 = at(r + 1, c), *c11 = at(r + 1, c + 1);
      tiles::load<0>(c00, bytes);
      tiles::load<1>(c01, bytes);
      tiles::load<2>(c10, bytes);
      tiles::load<3>(c11, bytes);
      for (const Term term : S::terms)
        for (int64_t k = 0; k < depth; ++k)
          multiply_square(left(term.left, r, k), left(term.left, r + 1, k), right(term.right, k, c),
                          right(term.right, k, c + 1), [] {});
      tiles::store<0>(c00, bytes);
      tiles::store<1>(c01, bytes);
      tiles::store<2>(c10, bytes);
      tiles::store<3>(c11, bytes);
    }
}

// ----------------------------------------------------------------------------------------------------------- tiles
// A tile's products, and what turns them into logits.
template <bool Scaled> struct Tile {
  int64_t i, j;
  const float* products;  // [32][32]
  const float* factor_i;  // where Scaled
  Vec<float> factor_j[2];

  Tile() = default;
  template <class M>
  SSL_INLINE Tile(const Operands<M>& x, const Operands<M>& y, int64_t i, int64_t j, const float* products)
      : i(i), j(j), products(products), factor_i(x.factor + i - x.first) {
    if constexpr (Scaled)
      for (int v = 0; v < 2; ++v) factor_j[v] = load<float>(y.factor + j - y.first + 16 * v);
  }
  SSL_INLINE Vec<float> factor(int r, int v) const { return splat(factor_i[r]) * factor_j[v]; }
  // x_i . y_j for row r and vector v of the columns
  SSL_INLINE Vec<float> product(int r, int v) const {
    const Vec<float> p = load<float>(products + r * tile_side + 16 * v);
    if constexpr (Scaled) return p * factor(r, v);
    return p;
  }
};

// e, or 0 where an entry is left out. Bit c of keep[r] says that column c of row r takes part; null: all of them do.
SSL_INLINE Vec<float> kept(Vec<float> e, const uint32_t* keep, int r, int v) {
  return keep ? (Vec<float>)_mm512_maskz_mov_ps(__mmask16(keep[r] >> 16 * v), (__m512)e) : e;
}

// Which entries of a tile are left out, and the positives' products on the way.
template <bool Scaled>
__attribute__((noinline)) void mask_tile(const Sweep<float>& s, const Tile<Scaled>& tile, bool both_sides,
                                         uint32_t (&keep)[tile_side]) {
  const int64_t end = smaller(tile.j + tile_side, s.y->rows);
  for (int64_t r = 0; r < tile_side; ++r) {
    const int64_t row = tile.i + r;
    keep[r] = 0;
    if (row >= s.x->rows || end <= tile.j) continue;
    keep[r] = ~uint32_t(0) >> (tile_side - (end - tile.j));
    for (int64_t column = s.rule.first(row, tile.j); column < end; column += s.rule.period) {
      const int64_t c = column - tile.j;
      keep[r] &= ~(uint32_t(1) << c);
      if (s.pos && !(s.self() && column == row))
        set_positive(s, row, column, tile.product(int(r), int(c / 16))[c % 16], both_sides);
    }
  }
}

// Runs an epilogue over the tiles of a block: begin(tile), step(k, keep) for k < steps, end(keep). A tile's steps are
// taken between the products of the next tile. Tiles with entries to leave out are few; they are done at once instead,
// so that the steps in between need not ask.
template <class M, class Epilogue>
SSL_INLINE void for_tiles(const Sweep<float>& s, const Operands<M>& x, const Operands<M>& y, int64_t i0, int64_t i1,
                          int64_t j0, int64_t j1, float* buffers, Epilogue& epilogue) {
  constexpr int steps = Epilogue::steps;
  const int products = int(4 * M::logit_products * x.steps), steps_each = (steps + products - 1) / products;
  float *current = buffers, *previous = buffers + tile_side * tile_side;  // the tile in work, and the one before it
  int step = steps;
  bool open = false;
  auto advance = [&](int until) __attribute__((always_inline)) {
    for (until = until < steps ? until : steps; step < until; ++step) epilogue.step(step, nullptr);
  };
  for (int64_t j = j0; j < j1; j += tile_side)
    for (int64_t i = i0; i < i1; i += tile_side) {
      multiply_rows(x, y, i, j, current, [&]() __attribute__((always_inline)) { advance(step + steps_each); });
      advance(steps);
      if (open) epilogue.end(nullptr);
      const Tile<M::scaled> tile(x, y, i, j, current);
      epilogue.begin(tile);
      open = !(i + tile_side > s.x->rows || j + tile_side > s.y->rows ||
               s.rule.touches(i, i + tile_side, j, j + tile_side));
      step = 0;
      if (__builtin_expect(!open, 0)) {
        uint32_t keep[tile_side];
        mask_tile(s, tile, i0 != j0, keep);
        for (; step < steps; ++step) epilogue.step(step, keep);
        epilogue.end(keep);
      }
      std::swap(current, previous);
    }
  advance(steps);
  if (open) epilogue.end(nullptr);
}

// --------------------------------------------------------------------------------------------------------- forward
// 2^(t - ...) from the products, in the order of operations of tiles.h, for the same reasons.
struct Logit {
  Vec<float> scale, scale_low, shift;
  explicit Logit(const Sweep<float>& s)
      : scale(splat(s.scale2)), scale_low(splat(s.scale2_low)), shift(splat(s.shift)) {}
  SSL_INLINE Vec<float> rounded(Vec<float> product) const { return product * scale; }
  SSL_INLINE Vec<float> exp2_shifted(Vec<float> product) const {
    return exp2<float>(product * scale + (product * scale_low - shift));
  }
  SSL_INLINE Vec<float> exp2_less(Vec<float> product, Vec<float> top) const {
    return exp2<float>((product * scale - top) + product * scale_low);
  }
};

// Row sums gather in lanes over the block, a tile's column sums in registers.
template <bool Scaled> struct FixedSums {
  static constexpr int steps = tile_side;  // a row each
  const Logit logit;
  const int64_t i0, j0;
  float *const row_sums, *const column_sums;  // [rows][16], [columns]
  Tile<Scaled> tile;
  Vec<float> column[2];

  SSL_INLINE void begin(const Tile<Scaled>& next) {
    tile = next;
    column[0] = column[1] = Vec<float>{};
  }
  SSL_INLINE void step(int r, const uint32_t* keep) {
    float* const sums = row_sums + (tile.i - i0 + r) * 16;
    Vec<float> row = load<float>(sums);
    for (int v = 0; v < 2; ++v) {
      const Vec<float> e = kept(logit.exp2_shifted(tile.product(r, v)), keep, r, v);
      row += e;
      column[v] += e;
    }
    store<float>(sums, row);
  }
  SSL_INLINE void end(const uint32_t*) {
    for (int v = 0; v < 2; ++v) {
      float* const sums = column_sums + (tile.j - j0) + 16 * v;
      store<float>(sums, load<float>(sums) + column[v]);
    }
  }
};

// With a running maximum a lane, of rows or of columns: all of a tile at its end, because the maxima come first.
template <bool Scaled> struct RunningSums {
  static constexpr int steps = 0;
  const Logit logit;
  const int64_t i0, j0;
  float *const row_sums, *const column_sums, *const row_tops, *const column_tops;
  const bool columns_too;
  Tile<Scaled> tile;

  SSL_INLINE void begin(const Tile<Scaled>& next) { tile = next; }
  SSL_INLINE void step(int, const uint32_t*) {}
  SSL_INLINE void end(const uint32_t* keep) {
    for (int v = 0; v < 2 && columns_too; ++v) {
      const int64_t at = tile.j - j0 + 16 * v;
      add(column_sums + at, column_tops + at, tile_side, keep, [&](int k) { return std::pair(k, v); });
    }
    for (int r = 0; r < tile_side; ++r) {
      const int64_t at = (tile.i - i0 + r) * 16;
      add(row_sums + at, row_tops + at, 2, keep, [&](int k) { return std::pair(r, k); });
    }
  }

  // Adds `count` vectors of the tile, entry(k) = (row, vector of the columns), to 16 sums with their maxima.
  template <class Entry>
  SSL_INLINE void add(float* sums, float* tops, int count, const uint32_t* keep, Entry&& entry) const {
    const Vec<float> before = load<float>(tops);
    Vec<float> top = before;
    for (int k = 0; k < count; ++k) {
      const auto [r, v] = entry(k);
      // The maximum is that of rounded logits; the exponentials see exact ones, the same as in the backward pass
      Vec<float> t = logit.rounded(tile.product(r, v));
      if (keep) t = (Vec<float>)_mm512_mask_mov_ps((__m512)top, __mmask16(keep[r] >> 16 * v), (__m512)t);
      top = larger(t, top);
    }
    Vec<float> sum = load<float>(sums) * exp2<float>(before - top);
    for (int k = 0; k < count; ++k) {
      const auto [r, v] = entry(k);
      sum += kept(logit.exp2_less(tile.product(r, v), top), keep, r, v);
    }
    store<float>(sums, sum);
    store<float>(tops, top);
  }
};

template <class M>
void forward_block(const Sweep<float>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* scratch) {
  const FlushDenormals flush;
  const tiles::Scope scope;
  const Operands<M> x(s, *s.x), y(s, *s.y);
  const bool columns_too = columns_count(s, i0, j0);
  const int64_t row_lanes = (i1 - i0) * 16, columns = j1 - j0;
  float *const buffers = scratch, *const row_sums = buffers + 2 * tile_side * tile_side,
               *const column_sums = row_sums + row_lanes, *const row_tops = column_sums + columns,
               *const column_tops = row_tops + row_lanes;
  memset(row_sums, 0, (row_lanes + columns) * sizeof(float));
  const int64_t last_row = smaller(i1, s.x->rows), last_column = smaller(j1, s.y->rows);
  if (s.running) {
    for (int64_t k = 0; k < row_lanes + columns; ++k) row_tops[k] = masked<float>;
    RunningSums<M::scaled> sums{Logit(s), i0, j0, row_sums, column_sums, row_tops, column_tops, columns_too, {}};
    for_tiles(s, x, y, i0, i1, j0, j1, buffers, sums);
    for (int64_t i = i0; i < last_row; ++i)
      for (int64_t k = (i - i0) * 16; k < (i - i0 + 1) * 16; ++k) merge(*s.x, i, row_tops[k], row_sums[k]);
    if (columns_too)
      for (int64_t j = j0; j < last_column; ++j) merge(*s.y, j, column_tops[j - j0], column_sums[j - j0]);
  } else {
    FixedSums<M::scaled> sums{Logit(s), i0, j0, row_sums, column_sums, {}, {}};
    for_tiles(s, x, y, i0, i1, j0, j1, buffers, sums);
    for (int64_t i = i0; i < last_row; ++i) s.x->sum[i] += sum_lanes<float>(load<float>(row_sums + (i - i0) * 16));
    if (columns_too)
      for (int64_t j = j0; j < last_column; ++j) s.y->sum[j] += column_sums[j - j0];
  }
}

// -------------------------------------------------------------------------------------------------------- backward
// The strip of G in tiles, as the left operand of G Z and, its columns in the order of `unpacked`, the right of Z' G.
struct Strip {
  bf16 *left_, *right_;
  int64_t rows, columns;
  bf16* left(int part, int64_t group, int64_t pair) const {
    return left_ + part * rows * columns + (group * (columns / 32) + pair) * tile_elements;
  }
  bf16* right(int part, int64_t pair, int64_t group) const {
    return right_ + part * rows * columns + (pair * (columns / 16) + group) * tile_elements;
  }
};

// Interleaving two rows of 32 costs nothing beyond the instruction, but works in quarters of a register: of 32 columns
// the first tile gets 0-3, 8-11, 16-19, 24-27, the second the others.
constexpr int64_t unpacked(int64_t tile, int64_t k) { return k / 4 * 8 + tile * 4 + k % 4; }

// G_ij, times what the scaled operands lack, split and laid out for the gradient's products.
template <class M, Entry E> struct GradientTiles {
  static constexpr int steps = tile_side / 2;  // two rows each
  static constexpr int parts = M::Gradient::parts;
  const Sweep<float>& s;
  const Logit logit;
  const Strip strip;
  const int64_t i0, j0;
  float* const sums;  // [rows][2][16]: of a row's entries and of their slopes
  Tile<M::scaled> tile;
  Vec<float> weight_j[2], neg2_j[2];

  SSL_INLINE void begin(const Tile<M::scaled>& next) {
    tile = next;
    for (int v = 0; v < 2; ++v) {
      if constexpr (E == Entry::fixed || E == Entry::running) weight_j[v] = load<float>(s.y->weight + tile.j + 16 * v);
      if constexpr (E == Entry::running) neg2_j[v] = load<float>(s.y->neg2 + tile.j + 16 * v);
    }
  }

  SSL_INLINE Vec<float> entry(int r, int v, const uint32_t* keep) const {
    const Vec<float> product = tile.product(r, v);
    const int64_t i = tile.i + r;
    float* const row_sums = sums + (i - i0) * 32;
    Vec<float> g;
    if constexpr (E == Entry::fixed) {
      g = logit.exp2_shifted(product) * (splat(s.x->weight[i]) + weight_j[v]);
    } else if constexpr (E == Entry::running) {
      g = logit.exp2_less(product, splat(s.x->neg2[i])) * splat(s.x->weight[i]) +
          logit.exp2_less(product, neg2_j[v]) * weight_j[v];
    } else if constexpr (E == Entry::rows) {
      g = logit.exp2_less(product, splat(s.x->neg2[i])) * splat(s.x->weight[i]);
    } else if constexpr (E == Entry::attend) {
      g = kept(logit.exp2_shifted(product), keep, r, v);
      store<float>(row_sums, load<float>(row_sums) + g);
    } else {
      const auto [value, share] = softplus_of<float>(product * logit.scale + (product * logit.scale_low + splat(s.bias2)));
      g = kept(share, keep, r, v);
      store<float>(row_sums, load<float>(row_sums) + kept(value, keep, r, v));
      store<float>(row_sums + 16, load<float>(row_sums + 16) + g);
    }
    if constexpr (M::scaled) g *= s.y->g ? tile.factor(r, v) : tile.factor_j[v];
    return kept(g, keep, r, v);
  }

  SSL_INLINE void step(int pair_of_rows, const uint32_t* keep) {
    const int r = 2 * pair_of_rows;
    const int64_t i = tile.i - i0, j = tile.j - j0;
    Vec<float> g[2][2];
    for (int k = 0; k < 2; ++k)
      for (int v = 0; v < 2; ++v) g[k][v] = entry(r + k, v, keep);
    for (int part = 0; part < parts; ++part) {
      const __m512i first = to_bf16(g[0][0], g[0][1]), second = to_bf16(g[1][0], g[1][1]);
      bf16* const left = strip.left(part, (i + r) / 16, j / 32);
      store_row(left, r % 16, first);
      store_row(left, r % 16 + 1, second);
      bf16* const right = strip.right(part, i / 32, j / 16);
      store_row(right, pair_of_rows, _mm512_unpacklo_epi16(first, second));
      store_row(right + tile_elements, pair_of_rows, _mm512_unpackhi_epi16(first, second));
      if (part + 1 == parts) break;
      subtract(g[0][0], g[0][1], first);
      subtract(g[1][0], g[1][1], second);
    }
  }
  SSL_INLINE void end(const uint32_t*) {}
};

// Columns 16 slice .. of row i of g.
SSL_INLINE float* slice_of(const Side<float>& side, int64_t slice, int64_t i) {
  return g_row(side, 16 * slice / panel<float>, i) + 16 * slice % panel<float>;
}

// In gt of the columns: what a side's blocks got as such, G' X transposed, in tiles [padded / 16][width / 16][16][16] whose rows are
// columns of X and whose columns are 16 of 32 rows, in the order of `unpacked`.
SSL_INLINE float* transposed_gradient(const Sweep<float>& s, const Side<float>& side, int64_t group) {
  return side.gt + group * 2 * steps_of(s) * tile_floats;
}

// dX_I += G Y_J and dY_J' += X_I' G, a strip of G at a time
template <class M, Entry E>
void gradient_block(const Sweep<float>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* scratch) {
  using S = typename M::Gradient;
  constexpr bool sums_too = E == Entry::attend || E == Entry::softplus;
  const FlushDenormals flush;
  const tiles::Scope scope;
  const Operands<M> x(s, *s.x), y(s, *s.y);
  const bool y_too = s.y->g && !(s.self() && i0 == j0);
  const int64_t slices = 2 * x.steps;
  const int64_t most_rows = smaller(i1 - i0, strip_rows), most_columns = smaller(j1 - j0, strip_columns);
  float* const sums = scratch + 2 * tile_side * tile_side;
  bf16* const strip_tiles = reinterpret_cast<bf16*>(sums + 32 * strip_rows);
  bf16* const x_tiles = strip_tiles + 2 * S::parts * most_rows * most_columns;
  bf16* const y_tiles = x_tiles + S::parts * most_rows * 16 * slices;
  for (int64_t j = j0; j < j1; j += strip_columns) {
    const int64_t columns = smaller(j1 - j, strip_columns);
    const GradientOperand y_j{y_tiles, columns / 32, slices};
    if (s.x->g) lay_out<M, false>(y, j, y_j);
    for (int64_t i = i0; i < i1; i += strip_rows) {
      const int64_t rows = smaller(i1 - i, strip_rows);
      const Strip strip{strip_tiles, strip_tiles + S::parts * rows * columns, rows, columns};
      if constexpr (sums_too) memset(sums, 0, 32 * rows * sizeof(float));
      GradientTiles<M, E> gradient{s, Logit(s), strip, i, j, sums, {}, {}, {}};
      for_tiles(s, x, y, i, i + rows, j, j + columns, scratch, gradient);
      if constexpr (sums_too)
        for (int64_t r = 0; r < rows && i + r < s.x->rows; ++r) {
          s.x->sum[i + r] += sum_lanes<float>(load<float>(sums + 32 * r));
          if constexpr (E == Entry::softplus) s.slope[i + r] += sum_lanes<float>(load<float>(sums + 32 * r + 16));
        }
      if (s.x->g)
        add_products<S>(
            rows / 16, slices, columns / 32, s.x->g_row,
            [&](int part, int64_t r, int64_t k) { return strip.left(part, r, k); },
            [&](int part, int64_t k, int64_t c) { return y_j.at(part, c, k); },
            [&](int64_t r, int64_t c) { return slice_of(*s.x, c, i + 16 * r); });
      if (!y_too) continue;
      const GradientOperand x_i{x_tiles, rows / 32, slices};
      lay_out<M, true>(x, i, x_i);
      add_products<S>(
          slices, columns / 16, rows / 32, 16,
          [&](int part, int64_t r, int64_t k) { return x_i.at(part, r, k); },
          [&](int part, int64_t k, int64_t c) { return strip.right(part, k, c); },
          [&](int64_t r, int64_t c) { return transposed_gradient(s, *s.y, j / 16 + c) + r * tile_floats; });
    }
  }
}

// Adds what rows [i0, i1) of a side, i0 a multiple of 32, got as columns to what they got as rows, in g.
template <class M> void add_transposed(const Sweep<float>& s, const Side<float>& side, int64_t i0, int64_t i1) {
  const Operands<M> z(s, side);
  for (int64_t i = i0; i < i1; i += 32)
    for (int64_t tile = 0; tile < 2; ++tile)
      for (int64_t slice = 0; slice < 2 * z.steps; ++slice) {
        Vec<float> square[16] = {};
        if (&side == s.y) {
          const float* const from = transposed_gradient(s, side, i / 16 + tile) + slice * tile_floats;
          for (int r = 0; r < 16; ++r) square[r] = load<float>(from + 16 * r);
          transpose<float>(square);
        }
        for (int r = 0; r < 16; ++r) {
          const int64_t row = i + unpacked(tile, r);
          float* const g = slice_of(side, slice, row);
          Vec<float> sum = load<float>(g) + square[r];
          if constexpr (M::scaled)
            if (s.y->g) sum /= splat(z.factor[row]);  // G had it for the other side's sake
          store<float>(g, sum);
        }
      }
}

// ---------------------------------------------------------------------------------------------------------- kernels
inline void forward_tiles(const Sweep<float>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* scratch) {
  with_mode(s, [&](auto mode) { forward_block<decltype(mode)>(s, i0, i1, j0, j1, scratch); });
}

template <Entry E>
void gradient_tiles(const Sweep<float>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* scratch) {
  with_mode(s, [&](auto mode) { gradient_block<decltype(mode), E>(s, i0, i1, j0, j1, scratch); });
}

inline void backward_tiles(const Sweep<float>& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* scratch) {
  if (!s.running)
    gradient_tiles<Entry::fixed>(s, i0, i1, j0, j1, scratch);
  else if (s.y->weight)
    gradient_tiles<Entry::running>(s, i0, i1, j0, j1, scratch);
  else
    gradient_tiles<Entry::rows>(s, i0, i1, j0, j1, scratch);
}

inline double finish_tiles(const Sweep<float>& s, const Side<float>& side, int64_t i0, int64_t i1) {
  with_mode(s, [&](auto mode) { add_transposed<decltype(mode)>(s, side, i0, i1); });
  return finish<float, CallersRow<float>>(s, side, i0, i1);
}

// Blocks are twice as long as those of the vector units before they stop growing: a pair's operands come from the L3
// cache, and the products are that much faster.
inline int64_t block_of_tiles(const Side<float>& side) {
  int64_t block = 64;
  while (block < 1024 && block * 16 < side.rows) block *= 2;
  return block;
}

inline Layout layout_tiles(const Sweep<float>& s) {
  // Rows alone share out the columns, so that nothing keeps a block of rows short
  const int64_t block_x = s.rows_alone ? smaller(s.x->padded, 1024) : block_of_tiles(*s.x);
  const int64_t block_y = block_of_tiles(*s.y), depth = 32 * steps_of(s);
  const int64_t sums = 2 * (16 * block_x + block_y);  // and maxima: 16 lanes a row, one a column
  const int64_t rows = smaller(block_x, strip_rows), columns = smaller(block_y, strip_columns);
  int64_t strip = 0;
  with_mode(s, [&](auto mode) {
    // the strip twice, the rows and columns beside it once, at half a float
    strip = 32 * strip_rows + decltype(mode)::Gradient::parts * (rows * columns + (rows + columns) * depth / 2);
  });
  return {block_x, block_y, 2 * tile_side * tile_side + (s.gradient && strip > sums ? strip : sums)};
}

inline Memory memory_of_tiles(const Sweep<float>& s, const Side<float>& side) {
  int64_t operands = 0;
  with_mode(s, [&](auto mode) { operands = Operands<decltype(mode)>::floats(s, side); });
  return {0, operands, &side == s.y ? side.padded * 32 * steps_of(s) : 0};
}

}  // namespace ssl::SSL_ISA
