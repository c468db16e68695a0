// A tile of inner products, a group of four warps at a time, and the ring of places in shared memory that its operands come
// through.
#pragma once
#include "hopper.h"
#include "tile.h"

namespace ssl::cuda {

// A group's tile as its products know it: registers in their order.
template <int COLUMNS> SSL_DEVICE float (&registers_of(Entries<float, 1, COLUMNS>& s))[COLUMNS / 2] {
  return reinterpret_cast<float(&)[COLUMNS / 2]>(s.at[0]);
}

// 64 rows x by BN columns y over one panel's share of the width. Of blocks of BM rows in shared memory x is a group's part;
// pieces lie BM and BN rows apart. The small products first; FIRST: the first panel, nothing is in s yet.
template <class O, int BM, int BN, bool FIRST>
SSL_DEVICE void group_multiply_panel(Entries<float, 1, BN>& s, const char* x, const char* y) {
  auto multiply = [&]<bool BEGINS>(int x_at, int y_at) {
    group_multiply<false, BEGINS>(registers_of(s), matrix_descriptor(x + x_at, 0), matrix_descriptor(y + y_at, 0));
  };
  constexpr int low_x = BM * PANEL_BYTES, low_y = BN * PANEL_BYTES;
  multiply.template operator()<FIRST>(O::PIECES == 2 ? low_x : 0, 0);
#pragma unroll
  for (int d = 32; d < PANEL_BYTES; d += 32) multiply.template operator()<false>(d + (O::PIECES == 2 ? low_x : 0), d);
  if constexpr (O::PIECES == 2) {
#pragma unroll
    for (int d = 0; d < PANEL_BYTES; d += 32) multiply.template operator()<false>(d, low_y + d);
#pragma unroll
    for (int d = 0; d < PANEL_BYTES; d += 32) multiply.template operator()<false>(d, d);
  }
}
// All panels of a tile, by f.operator()<FIRST>(p).
template <int PANELS, class F> SSL_DEVICE void each_panel(F&& f) {
  f.template operator()<true>(0);
#pragma unroll
  for (int p = 1; p < PANELS; ++p) f.template operator()<false>(p);
}
template <class F> SSL_DEVICE void each_panel(int panels, F&& f) {
  f.template operator()<true>(0);
  for (int p = 1; p < panels; ++p) f.template operator()<false>(p);
}

// Rows [first, first + ROWS) of one panel, all pieces, by the copy engine; more than a block at a time, so many whole ones.
template <class O, int ROWS>
SSL_DEVICE void copy_bulk_rows(char* to, const Matrix& m, const void* units, int first, int panel, uint64_t* arrival) {
  using T = typename O::Element;
  constexpr int AT_ONCE = ROWS < BLOCK_ROWS ? ROWS : BLOCK_ROWS;  // what lies together
  static_assert(ROWS % AT_ONCE == 0);
#pragma unroll
  for (int piece = 0; piece < O::PIECES; ++piece)
#pragma unroll
    for (int row = 0; row < ROWS; row += AT_ONCE)
      copy_bulk(to + (piece * ROWS + row) * PANEL_BYTES,
                static_cast<const T*>(units) + piece * m.low_offset + operand_index<T>(first + row, panel * panel_width<T>, m.width),
                AT_ONCE * PANEL_BYTES, arrival);
}

// Places in shared memory that go round: one thread fills them, warps empty them, each at its own pace.
template <int PLACES> struct Ring {
  static constexpr int BARRIERS = 2 * PLACES;
  uint64_t *full, *empty;
  int place = 0, parity = 0;

  SSL_DEVICE explicit Ring(uint64_t* barriers) : full(barriers), empty(barriers + PLACES) {}
  SSL_DEVICE void make(int fillers, int emptiers) const {
    for (int k = 0; k < PLACES; ++k) arrival_init(full + k, fillers), arrival_init(empty + k, emptiers);
  }
  SSL_DEVICE void wait_full() const { wait_for(full + place, parity); }
  SSL_DEVICE void wait_empty() const { wait_for(empty + place, parity ^ 1); }
  SSL_DEVICE uint64_t* filled() const { return full + place; }
  SSL_DEVICE uint64_t* emptied() const { return empty + place; }
  SSL_DEVICE void next() {
    if (++place == PLACES) place = 0, parity ^= 1;
  }
};

}  // namespace ssl::cuda
