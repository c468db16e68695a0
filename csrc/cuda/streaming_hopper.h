// A weighing sweep without a result, for Hopper and rows of any width: both sides are streamed by panels.
#pragma once
#include "group_tile.h"
#include "weighing.h"

namespace ssl::cuda {

template <class Operands, int BN_, int STAGES_> struct HopperStreamedCut {
  using O = Operands;
  static constexpr int WARPS = 8, MT = 1, BM = 128, BN = BN_, BD = 0, STAGES = STAGES_, BLOCKS = 1;
  static constexpr bool WHOLE = false;
  static constexpr int WORKERS = 32 * WARPS, THREADS = WORKERS + 128;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;
  static constexpr int SLOT = X_PANEL + Y_PANEL;
  static constexpr int VECTOR = BN * int(sizeof(typename O::Real));
  SSL_DEVICE static void sync() { sync_some(1, WORKERS); }

  static constexpr size_t shared(int vectors) {
    return STAGES * (SLOT + size_t(vectors) * VECTOR + 2 * sizeof(uint64_t));
  }
  template <class Rule, class Call> static int launch(const Call& call, void* stream);
};

// The warps that have rows: every tile, panel by panel. A tile's vectors come with its last panel, whose slot is given back when
// they have been read.
template <bool FIXED, class Cut, class Rule, class Call>
SSL_DEVICE void walk_streamed(const Call& call, Rule& rule, const Place& place, Ring<Cut::STAGES>& ring, char* slots, int panels, int start,
                              int tiles) {
  using O = typename Cut::O;
  constexpr int BM = Cut::BM, BN = Cut::BN;
  const int warp = int(threadIdx.x) / 32, lane = place.lane;
  const char* const vectors = slots + Cut::STAGES * Cut::SLOT;
  Diagonals<BM, BN> pairs(call.matrix, place.row - warp * 16, start);
  for (int tile = 0; tile < tiles; ++tile) {
    Entries<float, 1, BN> s;
    int last = 0;  // the place of the panel before
    each_panel(panels, [&]<bool FIRST>(int) {
      ring.wait_full();
      const char* const slot = slots + ring.place * Cut::SLOT;
      group_fence();
      group_multiply_panel<O, BM, BN, FIRST>(s, slot + warp / 4 * 64 * PANEL_BYTES, slot + Cut::X_PANEL);
      group_commit();
      if constexpr (!FIRST) {
        group_wait<1>();
        if (lane == 0) arrive(ring.empty + last);
      }
      last = ring.place;
      ring.next();
    });
    group_wait<0>(registers_of(s));
    rule.template weigh<FIXED>(s, reinterpret_cast<const float*>(vectors + last * Rule::VECTORS * Cut::VECTOR), start + tile * BN, pairs);
    pairs.next();
    __syncwarp();
    if (lane == 0) arrive(ring.empty + last);
  }
}

template <class Cut, class Rule, class Call>
__global__ void __launch_bounds__(Cut::THREADS, 1) streaming_hopper(const Call call) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // elsewhere nobody launches it
  using O = typename Cut::O;
  constexpr int BM = Cut::BM, BN = Cut::BN;
  const Matrix& m = call.matrix;
  const int first_row = first_row_of(call) + int(blockIdx.x) * BM, start = int(blockIdx.y) * call.span;
  const int tiles = (smaller(start + call.span, m.y.rows) - start + BN - 1) / BN;
  const int panels = m.width / panel_width<typename O::Element>;

  char* const slots = reinterpret_cast<char*>(shared_memory());
  char* const vectors = slots + Cut::STAGES * Cut::SLOT;
  Ring<Cut::STAGES> ring(reinterpret_cast<uint64_t*>(vectors + Cut::STAGES * Rule::VECTORS * Cut::VECTOR));
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
    for (int tile = 0; tile < tiles; ++tile)
      for (int p = 0; p < panels; ++p, ring.next()) {
        const int column = start + tile * BN, count = p == panels - 1 ? vector.count : 0;
        char* const slot = slots + ring.place * Cut::SLOT;
        ring.wait_empty();
        arrive_expecting(ring.filled(), Cut::SLOT + count * Cut::VECTOR);
        copy_bulk_rows<O, BM>(slot, m, m.x.units, first_row, p, ring.filled());
        copy_bulk_rows<O, BN>(slot + Cut::X_PANEL, m, m.y.units, column, p, ring.filled());
        for (int v = 0; v < count; ++v)
          copy_bulk(vectors + (ring.place * Rule::VECTORS + v) * Cut::VECTOR, vector.at + v * vector.step + column,
                    Cut::VECTOR, ring.filled());
      }
    return;
  }

  take_registers<240>();
  const Place place{first_row + warp * 16, lane};
  Rule rule(call, place);
  if (Rule::SHIFTS && rule.fixed)
    walk_streamed<Rule::SHIFTS, Cut>(call, rule, place, ring, slots, panels, start, tiles);
  else
    walk_streamed<false, Cut>(call, rule, place, ring, slots, panels, start, tiles);
  rule.store();
#endif
}

template <class Operands, int BN, int STAGES>
template <class Rule, class Call>
int HopperStreamedCut<Operands, BN, STAGES>::launch(const Call& call, void* stream) {
  return cuda::launch(streaming_hopper<HopperStreamedCut, Rule, Call>, weighing_grid<HopperStreamedCut>(call), THREADS,
                      shared(Rule::VECTORS), stream, call);
}

}  // namespace ssl::cuda
