// The forward sweep for Hopper. One warp copies panels ahead; two groups of four warps own 64 rows each and never wait for each
// other; another warp adds up columns, so that they need not meet for that either.
#pragma once
#include "hopper.h"
#include "sums.h"

namespace ssl::cuda {

// WIDTH: rows of this width stay in shared memory, those of the next block already under way; 0: they are streamed, as wide as
// they are, beside the columns.
template <class Operands, int WIDTH, int BN_, int STAGES_> struct HopperForwardCut {
  using O = Operands;
  static constexpr int WARPS = 8, MT = 1, BM = 128, BN = BN_, STAGES = STAGES_;
  static constexpr int WORKERS = 32 * WARPS, THREADS = WORKERS + 128;
  static constexpr int PANEL = panel_width<typename O::Element>, RESIDENT = WIDTH / PANEL;
  static constexpr bool WHOLE = WIDTH > 0;
  static constexpr int X_PANEL = O::PIECES * BM * PANEL_BYTES, Y_PANEL = O::PIECES * BN * PANEL_BYTES;
  static constexpr int SLOT = Y_PANEL + (WHOLE ? 0 : X_PANEL);
  static constexpr int FOUND = WARPS * 2 * BN * int(sizeof(typename O::Real));
  // rows of two blocks, slots, what was found of two tiles, barriers
  static constexpr size_t shared() {
    return 2 * RESIDENT * X_PANEL + STAGES * SLOT + 2 * FOUND + (4 + 2 * STAGES + 4) * sizeof(uint64_t);
  }
};

// A ring of SLOTS places in shared memory: who fills and who empties them go round, each at its own pace.
template <int SLOTS> struct Ring {
  uint64_t *full, *empty;
  int slot = 0, parity = 0;

  SSL_DEVICE explicit Ring(uint64_t* barriers) : full(barriers), empty(barriers + SLOTS) {}
  SSL_DEVICE void make(int fillers, int emptiers) const {
    for (int k = 0; k < SLOTS; ++k) arrival_init(full + k, fillers), arrival_init(empty + k, emptiers);
  }
  SSL_DEVICE void wait_full() const { wait_for(full + slot, parity); }
  SSL_DEVICE void wait_empty() const { wait_for(empty + slot, parity ^ 1); }
  SSL_DEVICE void next() {
    if (++slot == SLOTS) slot = 0, parity ^= 1;
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
  Ring<2> rows_ring;             // blocks of rows
  Ring<Cut::STAGES> ring;        // panels
  Ring<2> found_ring;            // what was found of a tile's columns

  SSL_DEVICE explicit HopperWalk(const Forward& call)
      : Sums<Cut>(call), panels(Cut::WHOLE ? Cut::RESIDENT : m.width / Cut::PANEL),
        resident(reinterpret_cast<char*>(shared_memory())), slots(resident + 2 * Cut::RESIDENT * Cut::X_PANEL),
        found(reinterpret_cast<Found*>(slots + Cut::STAGES * Cut::SLOT)), rows_ring(barriers()), ring(barriers() + 4),
        found_ring(barriers() + 4 + 2 * Cut::STAGES) {}

  SSL_DEVICE uint64_t* barriers() const { return reinterpret_cast<uint64_t*>(found + 2); }
  SSL_DEVICE void make_barriers() const {
    rows_ring.make(1, Cut::WARPS);
    ring.make(1, Cut::WARPS);
    found_ring.make(Cut::WARPS, 1);
  }

  template <int ROWS> SSL_DEVICE void copy_panel(char* to, const void* units, int row, int panel, uint64_t* barrier) const {
    for (int piece = 0; piece < O::PIECES; ++piece)
      copy_bulk(to + piece * ROWS * PANEL_BYTES,
                static_cast<const T*>(units) + piece * m.low_offset + operand_index<T>(row, panel * Cut::PANEL, m.width),
                ROWS * PANEL_BYTES, barrier);
  }

  // One thread: everything that is read, in the order in which it is read.
  SSL_DEVICE void copy() {
    for (int row = first_row; row < row_end; row += BM) {
      if (Cut::WHOLE) {
        rows_ring.wait_empty();
        arrive_expecting(rows_ring.full + rows_ring.slot, panels * Cut::X_PANEL);
        for (int p = 0; p < panels; ++p)
          copy_panel<BM>(resident + (rows_ring.slot * panels + p) * Cut::X_PANEL, m.x.units, row, p,
                         rows_ring.full + rows_ring.slot);
        rows_ring.next();
      }
      for (int tile = 0; tile < tiles; ++tile)
        for (int p = 0; p < panels; ++p) {
          ring.wait_empty();
          char* const slot = slots + ring.slot * Cut::SLOT;
          arrive_expecting(ring.full + ring.slot, Cut::SLOT);
          copy_panel<BN>(slot, m.y.units, column_start + tile * BN, p, ring.full + ring.slot);
          if (!Cut::WHOLE) copy_panel<BM>(slot + Cut::Y_PANEL, m.x.units, row, p, ring.full + ring.slot);
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
          this->template add_column<FIXED>(found[found_ring.slot], column, column_start + tile * BN, row == first_row);
        __syncwarp();
        if (lane == 0) arrive(found_ring.empty + found_ring.slot);
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
        auto multiply_panel = [&](int p) {
          ring.wait_full();
          const char* const y = slots + ring.slot * Cut::SLOT;
          const char* const x = (Cut::WHOLE ? resident + (rows_ring.slot * panels + p) * Cut::X_PANEL : y + Cut::Y_PANEL) + own;
          group_fence();
#pragma unroll
          for (int pass = O::PIECES == 2 ? 0 : 2; pass < 3; ++pass)  // low x high, high x low, high x high
#pragma unroll
            for (int d = 0; d < PANEL_BYTES; d += 32)
              group_multiply<false>(reinterpret_cast<float(&)[BN / 2]>(s.at[0]),
                                    matrix_descriptor(x + (pass == 0 ? BM * PANEL_BYTES : 0) + d, 0),
                                    matrix_descriptor(y + (pass == 1 ? BN * PANEL_BYTES : 0) + d, 0),
                                    p > 0 || pass > (O::PIECES == 2 ? 0 : 2) || d > 0);
          group_commit();
          if (used) {
            group_wait<1>();
            if (lane == 0) arrive(used);
          }
          used = ring.empty + ring.slot;
          ring.next();
        };
        if constexpr (Cut::WHOLE) {
#pragma unroll
          for (int p = 0; p < Cut::RESIDENT; ++p) multiply_panel(p);
        } else {
          for (int p = 0; p < panels; ++p) multiply_panel(p);
        }
        group_wait<0>();
        if (lane == 0) arrive(used);
        if (Cut::WHOLE && tile == tiles - 1) {
          if (lane == 0) arrive(rows_ring.empty + rows_ring.slot);
          rows_ring.next();
        }

        if (this->columns_too) found_ring.wait_empty();
        this->template sum<FIXED>(s, place, pairs, column_start + tile * BN, rows, shift, found[found_ring.slot][warp]);
        pairs.next();
        if (this->columns_too) {
          __syncwarp();
          if (lane == 0) arrive(found_ring.full + found_ring.slot);
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
