// What both forward sweeps do with a tile of products: row sums in registers, column sums through shared memory.
#pragma once
#include "logits.h"
#include "pairs.h"
#include "tile.h"
#include "weighing.h"

namespace ssl::cuda {

template <class Cut> struct Sums {
  using O = typename Cut::O;
  using Real = typename O::Real;
  static constexpr int BN = Cut::BN, MT = Cut::MT, WARPS = Cut::WARPS;
  // What the warps found of a tile's columns: sums, and maxima where they run.
  using Found = Real[WARPS][2][BN];

  const Forward& call;
  const Matrix& m;
  const int lane;
  int first_row, row_end, column_start, tiles;
  bool columns_too;

  // The rows of a lane, and what was summed of them.
  struct Rows {
    Real factor[MT][2], total[MT][2], top[MT][2];
  };

  SSL_DEVICE explicit Sums(const Forward& call) : call(call), m(call.matrix), lane(int(threadIdx.x) % 32) {
    const int a = int(blockIdx.y), b = int(blockIdx.x);
    first_row = a * call.x_group;
    row_end = smaller(first_row + call.x_group, m.x.rows);
    column_start = b * call.y_group;
    tiles = (smaller(call.y_group, m.y.rows - column_start) + BN - 1) / BN;
    columns_too = call.y_sums && !(m.self && a == b);
  }

  template <bool FIXED> SSL_DEVICE Rows begin(const Place& place, Real factor) const {
    Rows rows;
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows.factor[mt][h] = !FIXED && m.x.factors ? factor * Real(m.x.factors[place.i(mt, 2 * h)]) : factor;
        rows.total[mt][h] = 0;
        rows.top[mt][h] = Real(LOWEST);
      }
    return rows;
  }

  // FIXED: all logits under one shift, in base 2; otherwise running maxima, in nats.
  template <bool FIXED, class Pairs>
  SSL_DEVICE void sum(Entries<Real, MT, BN>& s, const Place& place, const Pairs& pairs, int first_column,
                      Rows& rows, Real shift, Real (&to)[2][BN]) const {
    const bool special = pairs.special();
    if (!FIXED || special) {
#pragma unroll
      for (int n = 0; n < BN / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int j = first_column + place.in_tile(n, c);
          const Real f_j = !FIXED && m.y.factors ? Real(m.y.factors[j]) : Real(1);
#pragma unroll
          for (int mt = 0; mt < MT; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int i = place.i(mt, 2 * h);
              Real& entry = s.at[mt][n][2 * h + c];
              if (!FIXED) entry *= rows.factor[mt][h] * f_j;
              // times a positive factor or not: what is left out of a fixed shift is told by being infinite
              if (special && !(pairs.inside(i, j) && pairs.negative(i, j))) entry = -Real(INFINITY);
            }
        }
    }
    if constexpr (FIXED) {
#pragma unroll
      for (int n = 0; n < BN / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          Real column = 0;
#pragma unroll
          for (int mt = 0; mt < MT; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const Real entry = s.at[mt][n][2 * h + c];
              const Real e = special && entry == -Real(INFINITY) ? Real(0) : exp2_fast(entry * rows.factor[0][0] - shift);
              rows.total[mt][h] += e;
              column += e;
            }
          if (columns_too) {
            column += __shfl_xor_sync(0xffffffffu, column, 4);
            column += __shfl_xor_sync(0xffffffffu, column, 8);
            column += __shfl_xor_sync(0xffffffffu, column, 16);
            if (lane < 4) to[0][place.in_tile(n, c)] = column;
          }
        }
    } else {
#pragma unroll
      for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Real highest = rows.top[mt][h];
#pragma unroll
          for (int n = 0; n < BN / 8; ++n) highest = larger(highest, larger(s.at[mt][n][2 * h], s.at[mt][n][2 * h + 1]));
          highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
          highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
          rows.total[mt][h] *= exp_fast(rows.top[mt][h] - highest);
          rows.top[mt][h] = highest;
#pragma unroll
          for (int n = 0; n < BN / 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) rows.total[mt][h] += exp_fast(s.at[mt][n][2 * h + c] - highest);
        }
      if (!columns_too) return;
#pragma unroll
      for (int n = 0; n < BN / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          Real highest = Real(LOWEST), column = 0;
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) highest = larger(highest, larger(s.at[mt][n][c], s.at[mt][n][2 + c]));
#pragma unroll
          for (int step = 4; step < 32; step *= 2) highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, step));
#pragma unroll
          for (int mt = 0; mt < MT; ++mt)
            column += exp_fast(s.at[mt][n][c] - highest) + exp_fast(s.at[mt][n][2 + c] - highest);
#pragma unroll
          for (int step = 4; step < 32; step *= 2) column += __shfl_xor_sync(0xffffffffu, column, step);
          if (lane < 4) {
            to[0][place.in_tile(n, c)] = column;
            to[1][place.in_tile(n, c)] = highest;
          }
        }
    }
  }

  // A column of a tile: what the warps found, in their order, on top of what the tiles above had. One thread has a column from
  // the first tile to the last, so that it reads what it wrote itself.
  template <bool FIXED> SSL_DEVICE void add_column(const Found& found, int column, int first_column, bool first_rows) const {
    const int64_t at = int64_t(blockIdx.y) * m.y.padded + first_column + column;
    Real* const sums = static_cast<Real*>(call.y_sums) + at;
    Real* const tops = static_cast<Real*>(call.y_tops) + at;
    Real sum = first_rows ? Real(0) : *sums;
    if constexpr (FIXED) {
#pragma unroll
      for (int w = 0; w < WARPS; ++w) sum += found[w][0][column];
    } else {
      const Real before = first_rows ? Real(LOWEST) : *tops;
      Real above = before;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) above = larger(above, found[w][1][column]);
      sum *= exp_fast(before - above);
#pragma unroll
      for (int w = 0; w < WARPS; ++w) sum += found[w][0][column] * exp_fast(found[w][1][column] - above);
      *tops = above;
    }
    *sums = sum;
  }

  template <bool FIXED> SSL_DEVICE void store_rows(const Place& place, const Rows& rows) const {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Real sum = rows.total[mt][h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) {
          const int64_t at = int64_t(blockIdx.x) * m.x.padded + place.i(mt, 2 * h);
          static_cast<Real*>(call.x_sums)[at] = sum;
          if (!FIXED) static_cast<Real*>(call.x_tops)[at] = rows.top[mt][h];
        }
      }
  }
};

}  // namespace ssl::cuda
