// The sweep that weighs, for Hopper: the same rules as in weighing.h, on products of warp groups.
//
// One warp copies tiles ahead, whole, as they lie in memory; groups of four warps own 64 rows each and never wait for each
// other, so that one's exponentials run under another's products. A tile serves both products: along its rows for the
// logits, across them for what they weigh. Weights go from registers into the second product.
#pragma once
#include "group_tile.h"
#include "weighing.h"

namespace ssl::cuda {

// WIDTH: of the rows, and of the result if there is one: all that a block needs of a row is in shared memory.
template <class Operands, int WIDTH_, int BN_, int STAGES_, bool RESULT = true> struct HopperCut {
  using O = Operands;
  using WithoutResult = HopperCut<Operands, WIDTH_, BN_, STAGES_, false>;
  static constexpr int WARPS = 8, MT = 1, BM = 128, WIDTH = WIDTH_, BN = BN_, BD = RESULT ? WIDTH_ : 0, STAGES = STAGES_;
  static constexpr int BLOCKS = 1;  // on a multiprocessor
  static constexpr bool WHOLE = true;
  static constexpr int WORKERS = 32 * WARPS, THREADS = WORKERS + 128;  // and the group of the warp that copies
  static constexpr int PANEL = panel_width<typename O::Element>, PANELS = WIDTH / PANEL;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;
  static constexpr int VECTOR = BN * int(sizeof(typename O::Real));
  SSL_DEVICE static void sync() { sync_some(1, WORKERS); }

  // Panels begin at multiples of 1,024 bytes, after which the swizzle repeats; so vectors and barriers come last.
  static constexpr size_t shared(int vectors) {
    return PANELS * X_PANEL + STAGES * (PANELS * Y_PANEL + size_t(vectors) * VECTOR + 2 * sizeof(uint64_t));
  }
  template <class Rule, class Call> static int launch(const Call& call, void* stream);
};

// The warps that have rows. Products are asked for ahead: while the weights of a tile are computed, the product with those of the
// tile before is under way. So three slots are in use at a time: of that one, of this, and of the next, being filled.
template <bool FIXED, class Cut, class Rule, class Call>
SSL_DEVICE void walk_groups(const Call& call, Rule& rule, const Place& place, Ring<Cut::STAGES>& ring, const char* x, int start, int tiles) {
  using O = typename Cut::O;
  constexpr int BM = Cut::BM, BN = Cut::BN, BD = Cut::BD, PANELS = Cut::PANELS;
  static_assert(Cut::STAGES >= 3);
  const int warp = int(threadIdx.x) / 32;
  const char* own = x + warp / 4 * 64 * PANEL_BYTES;
  const char* slots = x + PANELS * Cut::X_PANEL;
  const char* const vectors = slots + Cut::STAGES * PANELS * Cut::Y_PANEL;
  Diagonals<BM, BN> pairs(call.matrix, place.row - warp * 16, start);
  Entries<float, 1, BN> s;

  // Logits of the tile that `at` names; s is not to be touched until they are there.
  auto multiply = [&](const Ring<Cut::STAGES>& at) {
    at.wait_full();
    group_fence();
    each_panel<PANELS>([&]<bool FIRST>(int p) {
      group_multiply_panel<O, BM, BN, FIRST>(s, own + p * Cut::X_PANEL, slots + (at.place * PANELS + p) * Cut::Y_PANEL);
    });
    group_commit();
  };
  auto weigh = [&](int tile) {
    rule.template weigh<FIXED>(s, reinterpret_cast<const float*>(vectors + ring.place * Rule::VECTORS * Cut::VECTOR), start + tile * BN, pairs);
    pairs.next();
  };

  if constexpr (BD == 0) {
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      multiply(ring);
      group_wait<0>(registers_of(s));
      weigh(tile);
      __syncwarp();
      if (lane_now() == 0) arrive(ring.emptied());
    }
  } else {
    Entries<float, 1, BD> out;
    out.clear();
    auto weigh_rows = [&](const Weights<O, 1, BN>& weights, const char* y) {
#pragma unroll
      for (int p = 0; p < PANELS; ++p)
#pragma unroll
        for (int pass = O::PIECES == 2 ? 0 : 2; pass < 3; ++pass)
#pragma unroll
          for (int step = 0; step < BN / 16; ++step)
            group_multiply<true>(reinterpret_cast<float(&)[32]>(out.at[0][8 * p]), weights.at[pass == 0 ? O::PIECES - 1 : 0][0][step],
                                 matrix_descriptor(y + p * Cut::Y_PANEL + ((pass == 1 ? BN : 0) + step * 16) * PANEL_BYTES, 0));
      group_commit();
    };

    multiply(ring);
    group_wait<0>(registers_of(s));
    weigh(0);
    own = anew(own), slots = anew(slots);
    for (int tile = 1; tile < tiles; ++tile) {
      const Weights<O, 1, BN> weights(s);
      const char* const y = slots + ring.place * PANELS * Cut::Y_PANEL;
      uint64_t* const used = ring.emptied();
      ring.next();
      multiply(ring);
      weigh_rows(weights, y);
      group_wait<1>(registers_of(s));
      weigh(tile);
      group_wait<0>(registers_of(out));
      rule.rescale(out);
      __syncwarp();
      if (lane_now() == 0) arrive(used);
    }
    const Weights<O, 1, BN> weights(s);
    group_fence();
    weigh_rows(weights, slots + ring.place * PANELS * Cut::Y_PANEL);
    group_wait<0>(registers_of(out));

    if (float* const received = static_cast<float*>(call.received)) {
      rule.finish(out);
#pragma unroll
      for (int n = 0; n < BD / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          received[(int64_t(blockIdx.y) * call.matrix.x.padded + place.i(0, e)) * BD + place.in_tile(n, e)] = out.at[0][n][e];
    }
  }
}

template <class Cut, class Rule, class Call>
__global__ void __launch_bounds__(Cut::THREADS, 1) weighing_hopper(const Call call) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // elsewhere nobody launches it
  using O = typename Cut::O;
  constexpr int BM = Cut::BM, BN = Cut::BN, STAGES = Cut::STAGES, PANELS = Cut::PANELS;
  const Matrix& m = call.matrix;
  const int first_row = int(blockIdx.x) * BM, start = int(blockIdx.y) * call.span;
  const int tiles = (smaller(start + call.span, m.y.rows) - start + BN - 1) / BN;

  char* const x = reinterpret_cast<char*>(shared_memory());
  char* const slots = x + PANELS * Cut::X_PANEL;
  char* const vectors = slots + STAGES * PANELS * Cut::Y_PANEL;
  Ring<STAGES> ring(reinterpret_cast<uint64_t*>(vectors + STAGES * Rule::VECTORS * Cut::VECTOR));
  if (threadIdx.x == 0) {
    ring.make(1, Cut::WARPS);
    arrival_init_fence();
  }
  __syncthreads();

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (warp >= Cut::WARPS) {
    give_registers<24>();
    if (warp > Cut::WARPS || lane > 0) return;
    const auto vector = Rule::vectors(call);
    for (int tile = 0; tile < tiles; ++tile, ring.next()) {
      const int column = start + tile * BN;
      ring.wait_empty();
      arrive_expecting(ring.filled(), PANELS * (Cut::Y_PANEL + (tile ? 0 : Cut::X_PANEL)) + vector.count * Cut::VECTOR);
      for (int p = 0; p < PANELS; ++p) {
        if (tile == 0) copy_bulk_rows<O, BM>(x + p * Cut::X_PANEL, m, m.x.units, first_row, p, ring.filled());
        copy_bulk_rows<O, BN>(slots + (ring.place * PANELS + p) * Cut::Y_PANEL, m, m.y.units, column, p, ring.filled());
      }
      for (int v = 0; v < vector.count; ++v)
        copy_bulk(vectors + (ring.place * Rule::VECTORS + v) * Cut::VECTOR, vector.at + v * vector.step + column, Cut::VECTOR,
                  ring.filled());
    }
    return;
  }

  take_registers<240>();
  const Place place{first_row + warp * 16, lane};
  Rule rule(call, place);
  if (Rule::SHIFTS && rule.fixed)
    walk_groups<Rule::SHIFTS, Cut>(call, rule, place, ring, x, start, tiles);
  else
    walk_groups<false, Cut>(call, rule, place, ring, x, start, tiles);
  rule.store();
#endif
}

template <class Operands, int WIDTH, int BN, int STAGES, bool RESULT>
template <class Rule, class Call>
int HopperCut<Operands, WIDTH, BN, STAGES, RESULT>::launch(const Call& call, void* stream) {
  return cuda::launch(weighing_hopper<HopperCut, Rule, Call>, weighing_grid<HopperCut>(call), THREADS,
                      shared(Rule::VECTORS), stream, call);
}

}  // namespace ssl::cuda
