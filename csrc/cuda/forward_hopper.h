// The forward sweep for Hopper. One warp copies panels ahead; two groups of four warps own 64 rows each and never wait for each
// other; another warp adds up columns, so that they need not meet for that either.
#pragma once
#include "group_tile.h"
#include "sums.h"

namespace ssl::cuda {

// WIDTH: rows of this width stay in shared memory, those of the next block already under way; 0: they are streamed, as wide as
// they are, beside the columns.
template <class Operands, int WIDTH, int BN_, int STAGES_> struct HopperForwardCut {
  using O = Operands;
  static constexpr int WARPS = 8, MT = 1, BM = 128, BN = BN_, STAGES = STAGES_, BLOCKS = 1;
  static constexpr int WORKERS = 32 * WARPS, THREADS = WORKERS + 128;
  static constexpr int PANEL = panel_width<typename O::Element>, RESIDENT = WIDTH / PANEL;
  static constexpr bool WHOLE = WIDTH > 0;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;
  static constexpr int SLOT = Y_PANEL + (WHOLE ? 0 : X_PANEL);
  static constexpr int FOUND = WARPS * 2 * BN * int(sizeof(typename O::Real));
  // rows of two blocks, slots, what was found of two tiles, barriers
  static constexpr size_t shared() {
    return 2 * RESIDENT * X_PANEL + STAGES * SLOT + 2 * FOUND + (2 + STAGES + 2) * 2 * sizeof(uint64_t);
  }
};

template <class Cut> struct HopperWalk : Sums<Cut> {
  using O = typename Cut::O;
  using T = typename O::Element;
  using Found = typename Sums<Cut>::Found;
  static constexpr int BM = Cut::BM, BN = Cut::BN;
  using Sums<Cut>::call, Sums<Cut>::m, Sums<Cut>::lane, Sums<Cut>::first_row, Sums<Cut>::row_end, Sums<Cut>::column_start,
      Sums<Cut>::tiles;

  const int panels;
  char *const resident, *const slots;
  Found* const found;
  Ring<2> rows_ring;       // blocks of rows
  Ring<Cut::STAGES> ring;  // panels
  Ring<2> found_ring;      // what was found of a tile's columns

  SSL_DEVICE explicit HopperWalk(const Forward& call)
      : Sums<Cut>(call), panels(Cut::WHOLE ? Cut::RESIDENT : m.width / Cut::PANEL),
        resident(reinterpret_cast<char*>(shared_memory())), slots(resident + 2 * Cut::RESIDENT * Cut::X_PANEL),
        found(reinterpret_cast<Found*>(slots + Cut::STAGES * Cut::SLOT)), rows_ring(barriers()), ring(rows_ring.full + rows_ring.BARRIERS),
        found_ring(ring.full + ring.BARRIERS) {}

  SSL_DEVICE uint64_t* barriers() const { return reinterpret_cast<uint64_t*>(found + 2); }
  SSL_DEVICE void make_barriers() const {
    rows_ring.make(1, Cut::WARPS);
    ring.make(1, Cut::WARPS);
    found_ring.make(Cut::WARPS, 1);
  }

  SSL_DEVICE char* resident_panel(int p) const { return resident + (rows_ring.place * panels + p) * Cut::X_PANEL; }

  // One thread: everything that is read, in the order in which it is read.
  SSL_DEVICE void copy() {
    for (int row = first_row; row < row_end; row += BM) {
      if (Cut::WHOLE) {
        rows_ring.wait_empty();
        arrive_expecting(rows_ring.filled(), panels * Cut::X_PANEL);
        for (int p = 0; p < panels; ++p)
          copy_bulk_rows<O, BM>(resident_panel(p), m, m.x.units, row, p, rows_ring.filled());
        rows_ring.next();
      }
      for (int tile = 0; tile < tiles; ++tile)
        for (int p = 0; p < panels; ++p) {
          ring.wait_empty();
          char* const slot = slots + ring.place * Cut::SLOT;
          arrive_expecting(ring.filled(), Cut::SLOT);
          copy_bulk_rows<O, BN>(slot, m, m.y.units, column_start + tile * BN, p, ring.filled());
          if (!Cut::WHOLE) copy_bulk_rows<O, BM>(slot + Cut::Y_PANEL, m, m.x.units, row, p, ring.filled());
          ring.next();
        }
    }
  }

  // One warp: the columns of every tile.
  template <bool FIXED> SSL_DEVICE void add_columns() {
    if (!this->columns_too) return;
    for (int row = first_row; row < row_end; row += BM)
      for (int tile = 0; tile < tiles; ++tile) {
        found_ring.wait_full();
        for (int column = lane; column < BN; column += 32)
          this->template add_column<FIXED>(found[found_ring.place], column, column_start + tile * BN, row == first_row);
        __syncwarp();
        if (lane == 0) arrive(found_ring.emptied());
        found_ring.next();
      }
  }

  // Eight warps, each sixteen rows of every block.
  template <bool FIXED> SSL_DEVICE void work(float plain, float shift) {
    const int warp = int(threadIdx.x) / 32;
    const float factor = tile_factor(plain, FIXED);
    const int own = warp / 4 * 64 * PANEL_BYTES;  // of the warp's group
    for (int row = first_row; row < row_end; row += BM) {
      const Place place{row + warp * 16, lane};
      Diagonals<BM, BN> pairs(m, row, column_start);
      auto rows = this->template begin<FIXED>(place, factor);
      if (Cut::WHOLE) rows_ring.wait_full();
      for (int tile = 0; tile < tiles; ++tile) {
        Entries<float, 1, BN> s;
        uint64_t* used = nullptr;  // the slot of the panel before, empty once its products are done
        auto multiply_panel = [&]<bool FIRST>(int p) {
          ring.wait_full();
          const char* const y = slots + ring.place * Cut::SLOT;
          group_fence();
          group_multiply_panel<O, BM, BN, FIRST>(s, (Cut::WHOLE ? resident_panel(p) : y + Cut::Y_PANEL) + own, y);
          group_commit();
          if constexpr (!FIRST) {
            group_wait<1>();
            if (this->lane == 0) arrive(used);
          }
          used = ring.emptied();
          ring.next();
        };
        if constexpr (Cut::WHOLE)
          each_panel<Cut::RESIDENT>(multiply_panel);
        else
          each_panel(panels, multiply_panel);
        group_wait<0>(registers_of(s));
        if (lane == 0) arrive(used);
        if (Cut::WHOLE && tile == tiles - 1) {
          if (lane == 0) arrive(rows_ring.emptied());
          rows_ring.next();
        }

        if (this->columns_too) found_ring.wait_empty();
        this->template sum<FIXED>(s, place, pairs, column_start + tile * BN, rows, shift, found[found_ring.place][warp]);
        pairs.next();
        if (this->columns_too) {
          __syncwarp();
          if (lane == 0) arrive(found_ring.filled());
          found_ring.next();
        }
      }
      this->template store_rows<FIXED>(place, rows);
    }
  }
};

template <class Cut> __global__ void __launch_bounds__(Cut::THREADS, 1) forward_hopper(const Forward call) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // elsewhere nobody launches it
  if (call.matrix.self && blockIdx.x < blockIdx.y) return;
  const float plain = logit_factor<float>(call.matrix.scale, call.matrix.multiplier);
  const Shift<float> shift = choose_shift(plain, call.matrix.normalize);
  HopperWalk<Cut> walk(call);
  if (threadIdx.x == 0) {
    walk.make_barriers();
    arrival_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= Cut::WORKERS) {
    give_registers<56>();
    if (threadIdx.x == Cut::WORKERS) walk.copy();
    if (int(threadIdx.x) / 32 == Cut::WARPS + 1) shift.fixed ? walk.template add_columns<true>() : walk.template add_columns<false>();
  } else {
    take_registers<224>();
    shift.fixed ? walk.template work<true>(plain, shift.by) : walk.template work<false>(plain, 0);
  }
#endif
}

}  // namespace ssl::cuda
