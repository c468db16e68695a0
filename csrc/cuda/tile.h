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
  using Number = float;
  static constexpr int PIECES = 1;
};
struct Split : Half {  // float32: hi + lo, products without that of the two low pieces
  static constexpr int PIECES = 2;
};
struct Double {
  using Element = double;
  using Number = double;
  static constexpr int PIECES = 1;
};

template <class Number, int MT, int COLUMNS> struct Tile {
  Number at[MT][COLUMNS / 8][4];

  SSL_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[m][n][e] = 0;
  }
};

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
SSL_DEVICE void multiply_panel(Tile<float, MT, BN>& s, const char* x, const char* y, int lane) {
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
SSL_DEVICE void multiply_panel(Tile<double, MT, BN>& s, const char* x, const char* y, int lane) {
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
SSL_DEVICE void multiply(Tile<typename O::Number, MT, BN>& s, const char* x, int x_step, const char* y, int y_step,
                         int lane) {
  if constexpr (O::PIECES == 2) {
    multiply_panel(s, x + x_step, y, lane);
    multiply_panel(s, x, y + y_step, lane);
  }
  multiply_panel(s, x, y, lane);
}

// ------------------------------------------------------------------------------------------------- the second product
// out += g y over one panel of y's columns, whose rows are the tile's columns. OUT counts all columns of out, of which this
// panel's begin at FIRST.
template <int PIECE, int FIRST, int MT, int BN, int OUT>
SSL_DEVICE void weigh_panel(Tile<float, MT, OUT>& out, const Tile<float, MT, BN>& g, const char* y, int lane) {
#pragma unroll
  for (int k = 0; k < BN / 16; ++k) {
    uint32_t a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float *c = g.at[m][2 * k + i / 2], low = c[i % 2 * 2], high = c[i % 2 * 2 + 1];
        a[m][i] = pack_halves(low, high);
        if constexpr (PIECE == 1) a[m][i] = pack_halves(low - lower_half(a[m][i]), high - upper_half(a[m][i]));
      }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t b[4];
      load_transposed(b, piece_of(y, k * 16 + lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add(out.at[m][FIRST / 8 + 2 * n], a[m], b[0], b[1]);
        multiply_add(out.at[m][FIRST / 8 + 2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}
// The order in which a sum runs over the tile's columns is free: lane l has columns 2 (l % 4) and the next, so a step takes
// the even ones, and another the odd ones.
template <int PIECE, int FIRST, int MT, int BN, int OUT>
SSL_DEVICE void weigh_panel(Tile<double, MT, OUT>& out, const Tile<double, MT, BN>& g, const char* y, int lane) {
#pragma unroll
  for (int n = 0; n < BN / 8; ++n)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd)
#pragma unroll
      for (int d = 0; d < 2; ++d) {
        const double b = double_of(y, n * 8 + lane % 4 * 2 + odd, d * 8 + lane / 4);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          auto& c = out.at[m][FIRST / 8 + d];
          multiply_add(c[0], c[1], g.at[m][n][odd], b);
          multiply_add(c[2], c[3], g.at[m][n][2 + odd], b);
        }
      }
}

template <class O, int FIRST, int MT, int BN, int OUT>
SSL_DEVICE void weigh(Tile<typename O::Number, MT, OUT>& out, const Tile<typename O::Number, MT, BN>& g, const char* y,
                      int y_step, int lane) {
  if constexpr (O::PIECES == 2) {
    weigh_panel<1, FIRST>(out, g, y, lane);
    weigh_panel<0, FIRST>(out, g, y + y_step, lane);
  }
  weigh_panel<0, FIRST>(out, g, y, lane);
}

// ------------------------------------------------------------------------------------------------------------- loading
// Where a panel of a tile begins in a buffer of operand rows, in bytes; first is a multiple of the tile's rows.
template <class O> SSL_DEVICE const char* panel_at(const typename O::Element* units, int64_t first, int panel, int width) {
  return reinterpret_cast<const char*>(units + operand_index<typename O::Element>(first, panel * panel_width<typename O::Element>, width)
         - (first % 8) * 0);
}
template <int ROWS, int THREADS> SSL_DEVICE void copy_panel(char* to, const char* from) {
#pragma unroll
  for (int i = 0; i < ROWS * 8; i += THREADS)
    if (ROWS * 8 % THREADS == 0 || i + int(threadIdx.x) < ROWS * 8)
      copy_async16(to + (i + threadIdx.x) * 16, from + (i + threadIdx.x) * 16);
}

}  // namespace ssl::cuda
