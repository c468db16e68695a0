// A tile of inner products, a warp at a time: how operand rows become products, and how what follows weighs rows with them.
//
// A warp owns MT x 16 rows. Its lane l holds, of every 16 x 8 piece, rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next:
// the tensor cores' own layout, float16 and float64 alike, so that weights go from the first product into the second
// without leaving the registers.
#pragma once
#include "operands.h"

namespace ssl::cuda {

// What operand rows are made of, and what is computed from them.
struct Half {  // float16 and bfloat16, float32 of lowered precision
  using Element = half_t;
  using Real = float;
  static constexpr int PIECES = 1;
};
struct Split : Half {  // float32: hi + lo, products without that of the two low pieces
  static constexpr int PIECES = 2;
};
struct Double {
  using Element = double;
  using Real = double;
  static constexpr int PIECES = 1;
};

template <class Real, int MT, int COLUMNS> struct Entries {
  Real at[MT][COLUMNS / 8][4];

  SSL_DEVICE void clear() {
    each([](Real& entry, int, int, int, int) { entry = 0; });
  }
  // f(entry, mt, h, n, c) for every entry, column by column: row h of the two of piece (mt, n), column c of the two.
  template <class F> SSL_DEVICE void each(F&& f) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
          for (int h = 0; h < 2; ++h) f(at[mt][n][2 * h + c], mt, h, n, c);
  }
  // f(j, each) for every two columns of the tile that lie together, from j on; each(g) is g(entry, mt, h, c) for theirs.
  template <class Place, class F> SSL_DEVICE void each_column(const Place& place, F&& f) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; ++n)
      f(place.in_tile(n, 0), [&](auto&& g) {
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int mt = 0; mt < MT; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) g(at[mt][n][2 * h + c], mt, h, c);
      });
  }
};

// f(mt, h) for every row of a lane.
template <int MT, class F> SSL_DEVICE void each_row(F&& f) {
#pragma unroll
  for (int mt = 0; mt < MT; ++mt)
#pragma unroll
    for (int h = 0; h < 2; ++h) f(mt, h);
}

// Row and column of a lane's entry e of a 16 x 8 piece.
SSL_DEVICE int entry_row(int lane, int e) { return lane / 4 + (e & 2) * 4; }
SSL_DEVICE int entry_column(int lane, int e) { return lane % 4 * 2 + (e & 1); }

// 16 bytes of a row of a panel in shared memory.
SSL_DEVICE const char* piece_of(const char* panel, int row, int piece) {
  return panel + row * PANEL_BYTES + ((piece ^ (row & 7)) << 4);
}
SSL_DEVICE double double_of(const char* panel, int row, int d) {
  return *reinterpret_cast<const double*>(piece_of(panel, row, d / 2) + d % 2 * 8);
}

// -------------------------------------------------------------------------------------------------- the first product
// x y^T over one panel's share of the width: x the warp's rows, y the tile's columns.
template <int MT, int BN>
SSL_DEVICE void multiply_panel(Entries<float, MT, BN>& s, const char* x, const char* y, int lane) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) load_matrices(a[m], piece_of(x, m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < BN / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, piece_of(y, n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add(s.at[m][2 * n], a[m], b[0], b[1]);
        multiply_add(s.at[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}
template <int MT, int BN>
SSL_DEVICE void multiply_panel(Entries<double, MT, BN>& s, const char* x, const char* y, int lane) {
#pragma unroll
  for (int k = 0; k < 16; k += 4)
#pragma unroll
    for (int n = 0; n < BN / 8; ++n) {
      const double b = double_of(y, n * 8 + lane / 4, k + lane % 4);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        auto& c = s.at[m][n];
        multiply_add(c[0], c[1], double_of(x, m * 16 + lane / 4, k + lane % 4), b);
        multiply_add(c[2], c[3], double_of(x, m * 16 + 8 + lane / 4, k + lane % 4), b);
      }
    }
}

// The same with all pieces; those of x and of y lie x_step and y_step bytes apart. The small products first.
template <class O, int MT, int BN>
SSL_DEVICE void multiply(Entries<typename O::Real, MT, BN>& s, const char* x, int x_step, const char* y, int y_step,
                         int lane) {
  if constexpr (O::PIECES == 2) {
    multiply_panel(s, x + x_step, y, lane);
    multiply_panel(s, x, y + y_step, lane);
  }
  multiply_panel(s, x, y, lane);
}

// ------------------------------------------------------------------------------------------------- the second product
// The low pieces of two numbers, of which pack_halves made the high ones.
SSL_DEVICE uint32_t pack_low_halves(uint32_t high, float first, float second) {
  return pack_halves(first - lower_half(high), second - upper_half(high));
}

// Weights as the left operand of a product over the tile's columns.
template <class O, int MT, int BN> struct Weights {
  uint32_t at[O::PIECES][MT][BN / 16][4];

  SSL_DEVICE explicit Weights(const Entries<float, MT, BN>& g) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int k = 0; k < BN / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float first = g.at[m][2 * k + i / 2][i % 2 * 2], second = g.at[m][2 * k + i / 2][i % 2 * 2 + 1];
          const uint32_t high = at[0][m][k][i] = pack_halves(first, second);
          if constexpr (O::PIECES == 2) at[1][m][k][i] = pack_low_halves(high, first, second);
        }
  }
};
template <int MT, int BN> struct Weights<Double, MT, BN> {
  const Entries<double, MT, BN>& at;
  SSL_DEVICE explicit Weights(const Entries<double, MT, BN>& g) : at(g) {}
};

template <int MT, int STEPS, int OUT>
SSL_DEVICE void weigh_panel(Entries<float, MT, OUT>& out, int first, const uint32_t (&g)[MT][STEPS][4], const char* y,
                            int lane) {
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t b[4];
      load_transposed(b, piece_of(y, k * 16 + lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add(out.at[m][first + 2 * n], g[m][k], b[0], b[1]);
        multiply_add(out.at[m][first + 2 * n + 1], g[m][k], b[2], b[3]);
      }
    }
}

// out += g y over panel number `panel` of y's columns, whose rows are the tile's columns; its pieces lie y_step bytes apart.
template <class O, int MT, int BN, int OUT>
SSL_DEVICE void weigh(Entries<float, MT, OUT>& out, int panel, const Weights<O, MT, BN>& g, const char* y, int y_step,
                      int lane) {
  if constexpr (O::PIECES == 2) {
    weigh_panel(out, 8 * panel, g.at[1], y, lane);
    weigh_panel(out, 8 * panel, g.at[0], y + y_step, lane);
  }
  weigh_panel(out, 8 * panel, g.at[0], y, lane);
}
// The order in which a sum runs over the tile's columns is free: a lane has columns 2 (l % 4) and the next, so one step takes
// the even ones and another the odd.
template <class O, int MT, int BN, int OUT>
SSL_DEVICE void weigh(Entries<double, MT, OUT>& out, int panel, const Weights<O, MT, BN>& g, const char* y, int,
                      int lane) {
#pragma unroll
  for (int n = 0; n < BN / 8; ++n)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd)
#pragma unroll
      for (int d = 0; d < 2; ++d) {
        const double b = double_of(y, n * 8 + lane % 4 * 2 + odd, d * 8 + lane / 4);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          auto& c = out.at[m][2 * panel + d];
          multiply_add(c[0], c[1], g.at.at[m][n][odd], b);
          multiply_add(c[2], c[3], g.at.at[m][n][2 + odd], b);
        }
      }
}

// ------------------------------------------------------------------------------------------------------------- loading
// Copies rows [first, first + ROWS) of one panel, all pieces, ROWS * 128 bytes apart in shared memory.
template <class O, int ROWS, int THREADS>
SSL_DEVICE void copy_rows(char* to, const typename O::Element* units, int64_t low_offset, int64_t first, int panel, int width) {
  constexpr int COPIES = ROWS * 8;  // of 16 bytes
  static_assert(BLOCK_ROWS % ROWS == 0 && ROWS % 8 == 0);
  using T = typename O::Element;
#pragma unroll
  for (int piece = 0; piece < O::PIECES; ++piece) {
    const T* from = units + (piece * low_offset + operand_index<T>(first, panel * panel_width<T>, width));
#pragma unroll
    for (int i = 0; i < COPIES; i += THREADS) {
      const int k = i + int(threadIdx.x);
      if (COPIES % THREADS == 0 || k < COPIES)
        copy_async16(to + (piece * COPIES + k) * 16, reinterpret_cast<const char*>(from) + k * 16);
    }
  }
}

}  // namespace ssl::cuda
