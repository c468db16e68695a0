// The forward sweep: sums of exponentials over the negatives of rows and of columns, by pairs of groups of them.
//
// The block of groups (a, b) walks the rows of a against the columns of b. Row sums stay in registers and go to
// x_sums[b, rows of a]; column sums are added up in y_sums[a, columns of b], which no other block touches, so the order of
// additions is fixed. Under a fixed shift one exponential serves both. With a running maximum the two have different shifts and
// cost an exponential each, from one product.
//
// A set against itself (then y_sums is x_sums) is walked above the diagonal only. The pair (a, a) is walked whole, rows
// only: 1 / (number of groups) more work, and no special case.
#include "tiles.h"

namespace ssl::cuda {
namespace {

template <class Cut> struct Walk {
  using O = typename Cut::O;
  using Real = typename O::Real;
  using T = typename O::Element;
  static constexpr int BM = Cut::BM, BN = Cut::BN, MT = Cut::MT, STAGES = Cut::STAGES, WARPS = Cut::WARPS;

  const Forward& call;
  const Matrix& m;
  const int warp, lane;
  int row_end, column_start, tiles, panels;
  bool columns_too;
  // What a warp found of a tile's columns: sums, and maxima where they run; two tiles, so that one is read as the other is
  // written.
  Real* found;
  char *resident, *slots;
  int slot_index = 0;
  int ahead_row, ahead_tile = 0, ahead_panel = 0;

  SSL_DEVICE explicit Walk(const Forward& call)
      : call(call), m(call.matrix), warp(int(threadIdx.x) / 32), lane(int(threadIdx.x) % 32) {
    const int a = int(blockIdx.y), b = int(blockIdx.x);
    ahead_row = a * call.x_group;
    row_end = smaller(ahead_row + call.x_group, m.x.rows);
    column_start = b * call.y_group;
    tiles = (smaller(call.y_group, m.y.rows - column_start) + BN - 1) / BN;
    panels = m.width / Cut::PANEL;
    columns_too = call.y_sums && !(m.self && a == b);
    found = reinterpret_cast<Real*>(shared_memory());
    resident = reinterpret_cast<char*>(shared_memory()) + Cut::COLUMNS_FOUND;
    slots = resident + (Cut::WHOLE ? panels * Cut::X_PANEL : 0);
  }

  SSL_DEVICE void copy_x(char* to, int row, int panel) const {
    copy_rows<O, BM, Cut::THREADS>(to, static_cast<const T*>(m.x.units), m.low_offset, row, panel, m.width);
  }
  // Panels in the order in which they are used: all of a tile, all tiles of a block of rows, all blocks of rows.
  SSL_DEVICE void copy_ahead(int to) {
    if (ahead_row < row_end) {
      char* const slot = slots + to * Cut::SLOT;
      copy_rows<O, BN, Cut::THREADS>(slot, static_cast<const T*>(m.y.units), m.low_offset, column_start + ahead_tile * BN,
                                     ahead_panel, m.width);
      if (!Cut::WHOLE) copy_x(slot + Cut::Y_PANEL, ahead_row, ahead_panel);
      if (++ahead_panel == panels) {
        ahead_panel = 0;
        if (++ahead_tile == tiles) ahead_tile = 0, ahead_row += BM;
      }
    }
    copy_commit();
  }

  SSL_DEVICE Real* found_by(int buffer, int w) const { return found + (buffer * WARPS + w) * 2 * BN; }

  // FIXED: all logits under one shift, in base 2; otherwise running maxima, in nats.
  template <bool FIXED> SSL_DEVICE void run(Real plain, Real shift) {
    const Real factor = tile_factor(plain, FIXED);
#pragma unroll
    for (int k = 0; k < STAGES - 1; ++k) copy_ahead(k);
    Entries<Real, MT, BN> s;
    s.clear();
    int flushing = -1, buffer = 0;  // the first column of the tile whose columns are still to be added up
    bool flushing_first = false;
    for (int first_row = int(blockIdx.y) * call.x_group; first_row < row_end; first_row += BM) {
      const Place place{first_row + warp * MT * 16, lane};
      Diagonals<BM, BN> pairs(m, first_row, column_start);
      Real row_factor[MT][2], total[MT][2], top[MT][2];
#pragma unroll
      for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          row_factor[mt][h] = !FIXED && m.x.factors ? factor * Real(m.x.factors[place.i(mt, 2 * h)]) : factor;
          total[mt][h] = 0;
          top[mt][h] = Real(LOWEST);
        }
      if (Cut::WHOLE) {
        __syncthreads();  // everybody is done with the rows above
        for (int p = 0; p < panels; ++p) copy_x(resident + p * Cut::X_PANEL, first_row, p);
        copy_commit();
        copy_wait<0>();
      }
      for (int tile = 0; tile < tiles; ++tile) {
        for (int p = 0; p < panels; ++p) {
          copy_wait<STAGES - 2>();
          __syncthreads();
          copy_ahead(slot_index ? slot_index - 1 : STAGES - 1);
          if (flushing >= 0) add_columns<FIXED>(flushing, buffer ^ 1, flushing_first), flushing = -1;
          const char* const slot = slots + slot_index * Cut::SLOT;
          const char* const x = Cut::WHOLE ? resident + p * Cut::X_PANEL : slot + Cut::Y_PANEL;
          slot_index = slot_index + 1 == STAGES ? 0 : slot_index + 1;
          multiply<O>(s, x + warp * MT * 16 * PANEL_BYTES, BM * PANEL_BYTES, slot, BN * PANEL_BYTES, lane);
        }
        const int first_column = column_start + tile * BN;
        sum<FIXED>(s, place, pairs, first_column, row_factor, shift, total, top, found_by(buffer, warp));
        pairs.next();
        s.clear();
        if (columns_too) flushing = first_column, flushing_first = first_row == int(blockIdx.y) * call.x_group, buffer ^= 1;
      }
      store_rows<FIXED>(place, total, top);
    }
    __syncthreads();
    if (flushing >= 0) add_columns<FIXED>(flushing, buffer ^ 1, flushing_first);
    copy_wait<0>();
  }

  template <bool FIXED, class Pairs>
  SSL_DEVICE void sum(Entries<Real, MT, BN>& s, const Place& place, const Pairs& pairs, int first_column,
                      const Real (&row_factor)[MT][2], Real shift, Real (&total)[MT][2], Real (&top)[MT][2], Real* to) {
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
              if (!FIXED) entry *= row_factor[mt][h] * f_j;
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
              const Real e = special && entry == -Real(INFINITY) ? Real(0) : exp2_fast(entry * row_factor[0][0] - shift);
              total[mt][h] += e;
              column += e;
            }
          if (columns_too) {
            column += __shfl_xor_sync(0xffffffffu, column, 4);
            column += __shfl_xor_sync(0xffffffffu, column, 8);
            column += __shfl_xor_sync(0xffffffffu, column, 16);
            if (lane < 4) to[place.in_tile(n, c)] = column;
          }
        }
    } else {
#pragma unroll
      for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Real highest = top[mt][h];
#pragma unroll
          for (int n = 0; n < BN / 8; ++n) highest = larger(highest, larger(s.at[mt][n][2 * h], s.at[mt][n][2 * h + 1]));
          highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
          highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
          total[mt][h] *= exp_fast(top[mt][h] - highest);
          top[mt][h] = highest;
#pragma unroll
          for (int n = 0; n < BN / 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) total[mt][h] += exp_fast(s.at[mt][n][2 * h + c] - highest);
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
            to[place.in_tile(n, c)] = column;
            to[BN + place.in_tile(n, c)] = highest;
          }
        }
    }
  }

  // A tile's columns: what the warps found, in their order, on top of what the tiles above had; a thread a column, always the
  // same, so that it reads what it wrote itself.
  template <bool FIXED> SSL_DEVICE void add_columns(int first_column, int buffer, bool first_rows) const {
    static_assert(BN <= Cut::THREADS);
    const int column = int(threadIdx.x);
    if (column >= BN) return;
    const int64_t at = int64_t(blockIdx.y) * m.y.padded + first_column + column;
    Real* const sums = static_cast<Real*>(call.y_sums) + at;
    Real* const tops = static_cast<Real*>(call.y_tops) + at;
    Real sum = first_rows ? Real(0) : *sums;
    if constexpr (FIXED) {
#pragma unroll
      for (int w = 0; w < WARPS; ++w) sum += found_by(buffer, w)[column];
    } else {
      const Real before = first_rows ? Real(LOWEST) : *tops;
      Real above = before;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) above = larger(above, found_by(buffer, w)[BN + column]);
      sum *= exp_fast(before - above);
#pragma unroll
      for (int w = 0; w < WARPS; ++w)
        sum += found_by(buffer, w)[column] * exp_fast(found_by(buffer, w)[BN + column] - above);
      *tops = above;
    }
    *sums = sum;
  }

  template <bool FIXED> SSL_DEVICE void store_rows(const Place& place, const Real (&total)[MT][2], const Real (&top)[MT][2]) const {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Real sum = total[mt][h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) {
          const int64_t at = int64_t(blockIdx.x) * m.x.padded + place.i(mt, 2 * h);
          static_cast<Real*>(call.x_sums)[at] = sum;
          if (!FIXED) static_cast<Real*>(call.x_tops)[at] = top[mt][h];
        }
      }
  }
};

template <class Cut> __global__ void __launch_bounds__(Cut::THREADS, Cut::BLOCKS) forward_sweep(const Forward call) {
  using Real = typename Cut::O::Real;
  if (call.matrix.self && blockIdx.x < blockIdx.y) return;
  const Real plain = logit_factor<Real>(call.matrix.scale, call.matrix.multiplier);
  const Shift<Real> shift = choose_shift(plain, call.matrix.normalize);
  Walk<Cut> walk(call);
  if (shift.fixed)
    walk.template run<true>(plain, shift.by);
  else
    walk.template run<false>(plain, 0);
}

}  // namespace

int forward(const Forward& call, void* stream) {
  return with_forward_cut(call.matrix.operands, call.matrix.width, [&]<class Cut>() {
    const auto blocks = [](int n, int of) { return unsigned((n + of - 1) / of); };
    const dim3 grid(blocks(call.matrix.y.rows, call.y_group), blocks(call.matrix.x.rows, call.x_group));
    return launch(forward_sweep<Cut>, grid, Cut::THREADS, Cut::shared(call.matrix.width), stream, call);
  });
}

}  // namespace ssl::cuda
