// The sweep that weighs: a block owns rows, walks the columns tile by tile, and out += g(x y^T) y, where a rule makes of a tile's
// products what its columns are weighted by. The backward pass, attention over a queue and SigLIP's sum are three such rules.
//
// Every row belongs to one block and every span of columns to one sum, so nothing is added across blocks and the order of
// additions never changes.
#pragma once
#include <type_traits>
#include "logits.h"
#include "pairs.h"
#include "tile.h"
#include "warps.h"

namespace ssl::cuda {

// How a kernel is cut. BD: width of the result a block computes, 0 for none. WHOLE: rows are at most BD wide and stay in shared
// memory, one copy of a tile serves both products; otherwise panels are streamed, those of the result once more. BLOCKS: how many
// are to share a multiprocessor, as far as registers go.
template <class Operands, int WARPS_, int MT_, int BN_, int BD_, bool WHOLE_, int STAGES_, int BLOCKS_> struct Cut {
  using O = Operands;
  using WithoutResult = Cut<Operands, WARPS_, MT_, BN_, 0, WHOLE_, STAGES_, BLOCKS_>;
  static constexpr int WARPS = WARPS_, MT = MT_, BM = WARPS_ * MT_ * 16, BN = BN_, BD = BD_, STAGES = STAGES_;
  static constexpr int BLOCKS = BLOCKS_;
  static constexpr bool WHOLE = WHOLE_;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int PANEL = panel_width<typename O::Element>;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;

  static constexpr int VECTOR = BN * int(sizeof(typename O::Real));
  SSL_DEVICE static void sync() { __syncthreads(); }  // of the threads that have rows
  // Of shared memory: the rows that stay, and STAGES slots for what comes.
  static constexpr size_t shared(int width, int vectors) {
    const size_t panels = width / PANEL;
    const size_t slot = vectors * VECTOR + (WHOLE ? panels * Y_PANEL : X_PANEL + Y_PANEL);
    return (WHOLE ? panels * X_PANEL : 0) + STAGES * slot;
  }
  template <class Rule, class Call> static int launch(const Call& call, void* stream);
};

// What a rule sees of its place: the warp's first row, and the lane's share of every tile.
struct Place {
  int row, lane;
  SSL_DEVICE int i(int m, int e) const { return row + 16 * m + entry_row(lane, e); }
  SSL_DEVICE int in_tile(int n, int e) const { return 8 * n + entry_column(lane, e); }
};

// What is true of a lane's entries of one tile, a bit each. Found in a loop: few tiles need it, and in all others it should be no more
// than a branch, of which a condition beside every entry makes as many as there are entries.
template <int MT, int BN> struct Marks {
  static_assert(BN <= 256, "a word a row");
  using Word = std::conditional_t<(BN > 128), uint64_t, uint32_t>;
  Word at[MT][2];

  // test(i, j) of rows and columns of the matrix; `first`: the tile's first column.
  template <class Test> SSL_DEVICE Marks(const Place& of_tile, int first, Test test) {
    const Place place{of_tile.row, lane_now()};
    each_row<MT>([&](int mt, int h) {
      const int i = place.i(mt, 2 * h);
      Word bits = 0;
#pragma unroll 1
      for (int k = 0; k < BN / 4; ++k) bits |= Word(test(i, first + place.in_tile(k / 2, k % 2))) << k;
      at[mt][h] = bits;
    });
  }
  SSL_DEVICE bool hold(int mt, int h, int n, int c) const { return at[mt][h] >> (2 * n + c) & 1; }
};

// In a special tile, what is no negative becomes `instead`.
template <class Real, int MT, int BN, class Pairs>
SSL_DEVICE void replace_others(Entries<Real, MT, BN>& s, const Place& place, int first, const Pairs& pairs, Real instead) {
  if (!pairs.special()) return;
  const Marks<MT, BN> negatives(place, first, [&](int i, int j) { return pairs.inside(i, j) && pairs.negative(i, j); });
  s.each([&](Real& entry, int mt, int h, int n, int c) { entry = negatives.hold(mt, h, n, c) ? entry : instead; });
}

// What turns products with the lane's rows into logits, and weights of columns into units of the largest one, which float16 can
// hold. Rows on the sphere have no factors.
template <class Real, int MT> SSL_DEVICE void fill_row_factors(Real (&to)[MT][2], const Matrix& m, const Place& place, Real factor) {
  each_row<MT>([&](int mt, int h) { to[mt][h] = m.x.factors ? factor * Real(m.x.factors[place.i(mt, 2 * h)]) : factor; });
}
template <class Real> SSL_DEVICE Real unit_of_largest(const Matrix& m) {
  return m.y.largest ? 1 / Real(*m.y.largest) : Real(1);
}

// The four lanes that share a row of a tile.
constexpr int ROW_LANES = 4;

// What is summed so far, when the units of its rows become others: rarely, and then all of a warp at once.
template <class Real, int MT, int OUT> SSL_DEVICE void rescale_rows(Entries<Real, MT, OUT>& out, const Real (&by)[MT][2]) {
  bool changed = false;
  each_row<MT>([&](int mt, int h) { changed = changed || by[mt][h] != Real(1); });
  if (__any_sync(ALL_LANES, changed)) out.each([&](Real& sum, int mt, int h, int, int) { sum *= by[mt][h]; });
}

// Numbers that come along with each column's rows, where a rule wants any: `count` of them, each `step` behind the last.
template <class Real> struct ColumnVectors {
  const Real* at;
  int64_t step;
  int count;  // at most Rule::VECTORS
};

// The columns' factors, for a rule that wants nothing else of them.
template <class Real> SSL_DEVICE ColumnVectors<Real> factors_of(const Side& side) {
  return {reinterpret_cast<const Real*>(side.factors), 0, side.factors ? 1 : 0};  // rows in float64 have none
}
// Those of two columns that lie together, of a tile's vector of them, or ones where rows have none.
template <class Real> SSL_DEVICE void load_factors(Real (&f)[2], const Side& side, const Real* columns, int j) {
  f[0] = f[1] = 1;
  if (side.factors) load_two(f, columns + j);
}

// The first row of a call's first block.
template <class Call> SSL_DEVICE int first_row_of(const Call& call) {
  if constexpr (requires { call.first_row; }) return call.first_row;
  else return 0;
}

// A tile's weights, kept as float16. Of two neighbouring pieces a lane hands its neighbour its part of one and gets that of the
// other: it then has four columns of one, and the lanes of a row 32 bytes that lie together, which is what memory takes at a time.
template <class O, int MT, int BN>
SSL_DEVICE void keep_entries(const Entries<float, MT, BN>& s, const Kept& kept, int64_t columns, const Place& place, int first) {
  const bool odd = place.lane % 2;
  auto keep = [&](uint16_t* to, uint32_t left, uint32_t right) {
    const uint32_t given = odd ? left : right, got = __shfl_xor_sync(ALL_LANES, given, 1);
    *reinterpret_cast<uint64_t*>(to) = odd ? uint64_t(right) << 32 | got : uint64_t(got) << 32 | left;
  };
  each_row<MT>([&](int mt, int h) {
    const int e = 2 * h;
    uint16_t* const high = static_cast<uint16_t*>(kept.entries) + (place.i(mt, e) - kept.first_row) * columns + first + 8 * odd +
                           place.lane % 4 / 2 * 4;
    [[maybe_unused]] uint16_t* const low = high + kept.rows * columns;
#pragma unroll
    for (int n = 0; n < BN / 8; n += 2) {
      const float(&l)[4] = s.at[mt][n], (&r)[4] = s.at[mt][n + 1];
      const uint32_t left = pack_halves(l[e], l[e + 1]), right = pack_halves(r[e], r[e + 1]);
      keep(high + 8 * n, left, right);
      if constexpr (O::PIECES == 2)
        keep(low + 8 * n, pack_low_halves(left, l[e], l[e + 1]), pack_low_halves(right, r[e], r[e + 1]));
    }
  });
}

// A rule says of a tile's entries what its columns weigh: weigh<FIXED>(s, ...) makes weights of products, and rescale(out) brings
// what is summed so far to the units they are in. With SHIFTS it has two forms, and FIXED is the one under a shift that serves
// every row (rule.fixed): two loops, since a choice inside would be one at every entry.
template <bool FIXED, class Cut, class Rule, class Call>
SSL_DEVICE void walk(const Call& call, Rule& rule, const Place& place) {
  using O = typename Cut::O;
  using Real = typename O::Real;
  using T = typename O::Element;
  constexpr int BM = Cut::BM, BN = Cut::BN, BD = Cut::BD, MT = Cut::MT, STAGES = Cut::STAGES;
  const Matrix& m = call.matrix;
  const T* const x_units = static_cast<const T*>(m.x.units);
  const T* const y_units = static_cast<const T*>(m.y.units);
  const int warp = int(threadIdx.x) / 32, lane = place.lane;
  const int first_row = first_row_of(call) + int(blockIdx.x) * BM, start = int(blockIdx.y) * call.span;
  const int tiles = (smaller(start + call.span, m.y.rows) - start + BN - 1) / BN;
  const int panels = m.width / Cut::PANEL;
  const int first_out = int(blockIdx.z) * (BD / Cut::PANEL);  // panel
  const int outs = smaller(panels - first_out, BD / Cut::PANEL);

  char* const resident = reinterpret_cast<char*>(shared_memory());
  char* const slots = resident + (Cut::WHOLE ? panels * Cut::X_PANEL : 0);
  const int vectors_at = Cut::WHOLE ? panels * Cut::Y_PANEL : Cut::X_PANEL + Cut::Y_PANEL;
  const int slot_bytes = vectors_at + Rule::VECTORS * Cut::VECTOR;

  const auto vector = Rule::vectors(call);
  Diagonals<BM, BN> pairs(m, first_row, start);
  Entries<Real, MT, BN> s;
  Entries<Real, MT, BD ? BD : 8> out;
  s.clear();
  out.clear();

  // ------------------------------------------------------------- what is copied ahead, in the order in which it is used
  // Whole: a tile at a time. Streamed: a tile's panels for the first product, of x and of y, then y's for the second.
  const int units_a_tile = Cut::WHOLE ? 1 : panels + outs;
  int ahead_tile = 0, ahead_unit = 0, ahead_slot = 0;
  auto copy_ahead = [&] {
    if (ahead_tile < tiles) {
      char* const slot = slots + ahead_slot * slot_bytes;
      const int column = start + ahead_tile * BN;
      if (Cut::WHOLE) {
        for (int p = 0; p < panels; ++p)
          copy_rows<O, BN, Cut::THREADS>(slot + p * Cut::Y_PANEL, y_units, m.low_offset, column, p, m.width);
      } else {
        const bool second = ahead_unit >= panels;
        if (!second) copy_rows<O, BM, Cut::THREADS>(slot, x_units, m.low_offset, first_row, ahead_unit, m.width);
        copy_rows<O, BN, Cut::THREADS>(slot + Cut::X_PANEL, y_units, m.low_offset, column,
                                       second ? first_out + ahead_unit - panels : ahead_unit, m.width);
      }
      if (Cut::WHOLE || ahead_unit == panels - 1) {
        constexpr int PIECES = Cut::VECTOR / 16;
        for (int k = int(threadIdx.x); k < vector.count * PIECES; k += Cut::THREADS)
          copy_async16(slot + vectors_at + k * 16,
                       reinterpret_cast<const char*>(vector.at + k / PIECES * vector.step + column) + k % PIECES * 16);
      }
      if (++ahead_unit == units_a_tile) ahead_unit = 0, ++ahead_tile;
      ahead_slot = ahead_slot + 1 == STAGES ? 0 : ahead_slot + 1;
    }
    copy_commit();
  };
  int slot_index = 0;
  // The next slot's contents, once all have arrived and everybody is done with the slot before it, which is filled anew.
  auto next_slot = [&] {
    copy_wait<STAGES - 2>();
    __syncthreads();
    copy_ahead();
    const char* const slot = slots + slot_index * slot_bytes;
    slot_index = slot_index + 1 == STAGES ? 0 : slot_index + 1;
    return slot;
  };

  if (Cut::WHOLE)
    for (int p = 0; p < panels; ++p)
      copy_rows<O, BM, Cut::THREADS>(resident + p * Cut::X_PANEL, x_units, m.low_offset, first_row, p, m.width);
#pragma unroll
  for (int k = 0; k < STAGES - 1; ++k) copy_ahead();

  const int own = warp * MT * 16 * PANEL_BYTES;
  for (int tile = 0; tile < tiles; ++tile) {
    const char* slot = nullptr;
    if constexpr (Cut::WHOLE) {
      slot = next_slot();
      for (int p = 0; p < panels; ++p)
        multiply<O>(s, resident + p * Cut::X_PANEL + own, BM * PANEL_BYTES, slot + p * Cut::Y_PANEL, BN * PANEL_BYTES,
                    lane);
    } else {
      for (int p = 0; p < panels; ++p) {
        slot = next_slot();
        multiply<O>(s, slot + own, BM * PANEL_BYTES, slot + Cut::X_PANEL, BN * PANEL_BYTES, lane);
      }
    }

    const Real* const vectors = reinterpret_cast<const Real*>(slot + vectors_at);
    rule.template weigh<FIXED>(s, vectors, start + tile * BN, pairs);
    pairs.next();

    if constexpr (BD > 0) {
      rule.rescale(out);
      const Weights<O, MT, BN> weights(s);
#pragma unroll
      for (int p = 0; p < BD / Cut::PANEL; ++p)
        if (p < outs) {
          const char* const y = Cut::WHOLE ? slot + p * Cut::Y_PANEL : next_slot() + Cut::X_PANEL;
          weigh<O, MT, BN>(out, p, weights, y, BN * PANEL_BYTES, lane);
        }
    }
    s.clear();
  }
  copy_wait<0>();

  if constexpr (BD > 0) {
    if (Real* const received = static_cast<Real*>(call.received)) {
      rule.finish(out);
#pragma unroll
      for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int n = 0; n < BD / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int d = int(blockIdx.z) * BD + place.in_tile(n, e);
            if (d < m.width)
              received[(int64_t(blockIdx.y) * m.x.padded + place.i(mt, e)) * m.width + d] = out.at[mt][n][e];
          }
    }
  }
}

template <class Cut, class Rule, class Call>
__global__ void __launch_bounds__(Cut::THREADS, Cut::BLOCKS) weighing_sweep(const Call call) {
  if (FOR_HOPPER && Cut::WHOLE) return;  // weighing_hopper
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const Place place{first_row_of(call) + int(blockIdx.x) * Cut::BM + warp * Cut::MT * 16, lane};
  Rule rule(call, place);
  if (Rule::SHIFTS && rule.fixed)
    walk<Rule::SHIFTS, Cut>(call, rule, place);
  else
    walk<false, Cut>(call, rule, place);
  rule.store();
}

// Blocks of rows, spans of columns, pieces of the width.
template <class Call> int rows_of(const Call& call) {
  if constexpr (requires { call.first_row; }) return call.rows;
  else return call.matrix.x.rows;
}
template <class Cut, class Call> dim3 weighing_grid(const Call& call) {
  const auto blocks = [](int n, int of) { return unsigned((n + of - 1) / of); };
  return dim3(blocks(rows_of(call), Cut::BM), blocks(call.matrix.y.rows, call.span),
              Cut::BD ? blocks(call.matrix.width, Cut::BD ? Cut::BD : 1) : 1);
}
template <class Operands, int WARPS, int MT, int BN, int BD, bool WHOLE, int STAGES, int BLOCKS>
template <class Rule, class Call>
int Cut<Operands, WARPS, MT, BN, BD, WHOLE, STAGES, BLOCKS>::launch(const Call& call, void* stream) {
  return cuda::launch(weighing_sweep<Cut, Rule, Call>, weighing_grid<Cut>(call), THREADS,
                      shared(call.matrix.width, Rule::VECTORS), stream, call);
}

}  // namespace ssl::cuda
