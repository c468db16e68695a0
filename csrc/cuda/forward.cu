// The forward sweep: sums of exponentials over the negatives of rows and of columns, by pairs of groups of them.
//
// The block of groups (a, b) walks the rows of a against the columns of b. Row sums stay in registers and go to
// x_sums[b, rows of a]; column sums are added up in y_sums[a, columns of b], which no other block touches, so the order of
// additions is fixed. Under a fixed shift one exponential serves both. With a running maximum the two have different shifts and
// cost an exponential each, from one product.
//
// A set against itself (then y_sums is x_sums) is walked above the diagonal only. The pair (a, a) is walked whole, rows
// only: 1 / (number of groups) more work, and no special case.
#include "sums.h"
#include "tiles.h"

namespace ssl::cuda {
namespace {

template <class Cut> struct Walk : Sums<Cut> {
  using O = typename Cut::O;
  using Real = typename O::Real;
  using T = typename O::Element;
  using Found = typename Sums<Cut>::Found;
  static constexpr int BM = Cut::BM, BN = Cut::BN, MT = Cut::MT, STAGES = Cut::STAGES;
  using Sums<Cut>::call, Sums<Cut>::m, Sums<Cut>::lane, Sums<Cut>::row_end, Sums<Cut>::column_start, Sums<Cut>::tiles;

  const int warp, panels;
  Found* const found;  // of two tiles, so that one is read as the other is written
  char *const resident, *const slots;
  int slot_index = 0;
  int ahead_row, ahead_tile = 0, ahead_panel = 0;

  SSL_DEVICE explicit Walk(const Forward& call)
      : Sums<Cut>(call), warp(int(threadIdx.x) / 32), panels(m.width / Cut::PANEL),
        found(reinterpret_cast<Found*>(shared_memory())),
        resident(reinterpret_cast<char*>(shared_memory()) + 2 * sizeof(Found)),
        slots(resident + (Cut::WHOLE ? panels * Cut::X_PANEL : 0)), ahead_row(this->first_row) {}

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

  template <bool FIXED> SSL_DEVICE void run(Real plain, Real shift) {
    const Real factor = tile_factor(plain, FIXED);
#pragma unroll
    for (int k = 0; k < STAGES - 1; ++k) copy_ahead(k);
    Entries<Real, MT, BN> s;
    s.clear();
    int buffer = 0;
    int adding = -1;  // the first column of the tile before, whose columns are still to be added
    bool adding_first = false;
    auto add_columns = [&] {
      static_assert(BN <= Cut::THREADS);
      if (adding >= 0 && int(threadIdx.x) < BN)
        this->template add_column<FIXED>(found[buffer ^ 1], int(threadIdx.x), adding, adding_first);
      adding = -1;
    };
    for (int row = this->first_row; row < row_end; row += BM) {
      const Place place{row + warp * MT * 16, lane};
      Diagonals<BM, BN> pairs(m, row, column_start);
      auto rows = this->template begin<FIXED>(place, factor);
      if (Cut::WHOLE) {
        __syncthreads();  // everybody is done with the rows above
        for (int p = 0; p < panels; ++p) copy_x(resident + p * Cut::X_PANEL, row, p);
        copy_commit();
        copy_wait<0>();
      }
      for (int tile = 0; tile < tiles; ++tile) {
        for (int p = 0; p < panels; ++p) {
          copy_wait<STAGES - 2>();
          __syncthreads();
          copy_ahead(slot_index ? slot_index - 1 : STAGES - 1);
          add_columns();
          const char* const slot = slots + slot_index * Cut::SLOT;
          const char* const x = Cut::WHOLE ? resident + p * Cut::X_PANEL : slot + Cut::Y_PANEL;
          slot_index = slot_index + 1 == STAGES ? 0 : slot_index + 1;
          multiply<O>(s, x + warp * MT * 16 * PANEL_BYTES, BM * PANEL_BYTES, slot, BN * PANEL_BYTES, lane);
        }
        this->template sum<FIXED>(s, place, pairs, column_start + tile * BN, rows, shift, found[buffer][warp]);
        pairs.next();
        s.clear();
        if (this->columns_too) {
          adding = column_start + tile * BN;
          adding_first = row == this->first_row;
          buffer ^= 1;
        }
      }
      this->template store_rows<FIXED>(place, rows);
    }
    __syncthreads();
    add_columns();
    copy_wait<0>();
  }
};

template <class Cut> __global__ void __launch_bounds__(Cut::THREADS, Cut::BLOCKS) forward_sweep(const Forward call) {
  if (FOR_HOPPER && !std::is_same_v<typename Cut::O, Double>) return;  // forward_hopper
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

template <class Cut> struct OnWarps {
  static constexpr auto kernel = forward_sweep<Cut>;
  static size_t shared(int width) { return Cut::shared(width); }
};
template <class O, int WIDTH, int BN, int STAGES> struct OnWarps<HopperForwardCut<O, WIDTH, BN, STAGES>> {
  using Cut = HopperForwardCut<O, WIDTH, BN, STAGES>;
  static constexpr auto kernel = forward_hopper<Cut>;
  static size_t shared(int) { return Cut::shared(); }
};

}  // namespace

int forward(const Forward& call, void* stream) {
  const Matrix& m = call.matrix;
  return with_forward_cut(m.operands, m.width, m.arch, [&]<class Cut>() {
    const auto blocks = [](int n, int of) { return unsigned((n + of - 1) / of); };
    const dim3 grid(blocks(m.y.rows, call.y_group), blocks(m.x.rows, call.x_group));
    return launch(OnWarps<Cut>::kernel, grid, Cut::THREADS, OnWarps<Cut>::shared(m.width), stream, call);
  });
}

}  // namespace ssl::cuda
