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
    each_row<MT>([&](int mt, int h) {
      rows.factor[mt][h] = !FIXED && m.x.factors ? factor * Real(m.x.factors[place.i(mt, 2 * h)]) : factor;
      rows.total[mt][h] = 0;
      rows.top[mt][h] = Real(LOWEST);
    });
    return rows;
  }

  // FIXED: all logits under one shift, in base 2; otherwise running maxima, in nats.
  template <bool FIXED, class Pairs>
  SSL_DEVICE void sum(Entries<Real, MT, BN>& s, const Place& place, const Pairs& pairs, int first_column,
                      Rows& rows, Real shift, Real (&to)[2][BN]) const {
    if constexpr (FIXED) {
      s.each([&](Real& entry, int, int, int, int) { entry = exp2_fast(entry * rows.factor[0][0] - shift); });
      replace_others(s, place, first_column, pairs, Real(0));
      s.each([&](Real& entry, int mt, int h, int, int) { rows.total[mt][h] += entry; });
      if (columns_too) store_columns(s, place, to[0]);
    } else {
      s.each_column(place, [&](int j, auto&& each) {
        Real f_j[2];
        load_factors(f_j, m.y, reinterpret_cast<const Real*>(m.y.factors) + first_column, j);
        each([&](Real& entry, int mt, int h, int c) { entry *= rows.factor[mt][h] * f_j[c]; });
      });
      replace_others(s, place, first_column, pairs, -Real(INFINITY));
      Real highest[MT][2];
      each_row<MT>([&](int mt, int h) { highest[mt][h] = rows.top[mt][h]; });
      s.each([&](Real& entry, int mt, int h, int, int) { highest[mt][h] = larger(highest[mt][h], entry); });
      each_row<MT>([&](int mt, int h) {
        const Real top = largest_of_lanes(highest[mt][h], ROW_LANES);
        rows.total[mt][h] *= exp_fast(rows.top[mt][h] - top);
        rows.top[mt][h] = top;
      });
      s.each([&](Real& entry, int mt, int h, int, int) { rows.total[mt][h] += exp_fast(entry - rows.top[mt][h]); });
      if (!columns_too) return;
      s.each_column(place, [&](int j, auto&& each) {
        Real top[2] = {Real(LOWEST), Real(LOWEST)};
        each([&](Real& entry, int, int, int c) { top[c] = larger(top[c], entry); });
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int step = ROW_LANES; step < 32; step *= 2) top[c] = larger(top[c], __shfl_xor_sync(ALL_LANES, top[c], step));
        each([&](Real& entry, int, int, int c) { entry = exp_fast(entry - top[c]); });
        if (place.lane < ROW_LANES) to[1][j] = top[0], to[1][j + 1] = top[1];
      });
      store_columns(s, place, to[0]);
    }
  }

  // The sums of the tile's columns over the warp's rows. Lanes with the same columns hand each other halves of what is left: 7 / 8
  // of a column's numbers are passed on where a sum in all lanes passes on three times as many as there are.
  SSL_DEVICE static void store_columns(Entries<Real, MT, BN>& s, const Place& place, Real (&to)[BN]) {
    constexpr int COLUMNS = BN / 4;  // of a lane
    Real column[COLUMNS];
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) column[k] = 0;
    s.each([&](Real& entry, int, int, int n, int c) { column[2 * n + c] += entry; });
    int first = 0;  // of the columns that the lane still has
    hand_over<COLUMNS / 2, 16>(column, first, place.lane);
#pragma unroll
    for (int k = 0; k < COLUMNS / 8; ++k) to[place.in_tile((first + k) / 2, (first + k) % 2)] = column[k];
  }
  // A lane and the one STEP away keep LEFT columns each.
  template <int LEFT, int STEP> SSL_DEVICE static void hand_over(Real (&column)[BN / 4], int& first, int lane) {
    const bool upper = lane & STEP;
#pragma unroll
    for (int k = 0; k < LEFT; ++k) {
      const Real given = upper ? column[k] : column[LEFT + k], kept = upper ? column[LEFT + k] : column[k];
      column[k] = kept + __shfl_xor_sync(ALL_LANES, given, STEP);
    }
    if (upper) first += LEFT;
    if constexpr (STEP > ROW_LANES) hand_over<LEFT / 2, STEP / 2>(column, first, lane);
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
    each_row<MT>([&](int mt, int h) {
      const Real sum = sum_of_lanes(rows.total[mt][h], ROW_LANES);
      if (lane % ROW_LANES > 0) return;
      const int64_t at = int64_t(blockIdx.x) * m.x.padded + place.i(mt, 2 * h);
      static_cast<Real*>(call.x_sums)[at] = sum;
      if (!FIXED) static_cast<Real*>(call.x_tops)[at] = rows.top[mt][h];
    });
  }
};

}  // namespace ssl::cuda
