// Operand rows as every kernel reads them: float16 (or float64) times UNIT, in blocks of 128 rows, each block in panels of 128
// bytes a row (64 halves, 16 doubles), each row's eight pieces of 16 bytes swapped about by the row: piece c of row r lies
// where c ^ (r % 8) would. That is the tensor cores' 128-byte swizzle, so a tile is copied to shared memory as it lies, in
// contiguous spans, is read there without bank conflicts by ldmatrix and by wgmma alike, along rows and across them.
//
// A buffer has [pieces][padded rows][WIDTH] elements, rows of every side padded with zeros to whole tiles, WIDTH a multiple of
// 64; float32 that must stay exact has two pieces, hi + lo (22 bits); other inputs one.
#pragma once
#include "device.h"

namespace ssl::cuda {

constexpr int BLOCK_ROWS = 128;
constexpr int PANEL_BYTES = 128;
// Unit rows fill float16's normal range, so that the low piece keeps its digits.
constexpr float UNIT = 1024.0f;

template <class T> constexpr int panel_width = PANEL_BYTES / int(sizeof(T));

// Where element d of row r is, in elements.
template <class T> SSL_DEVICE int64_t operand_index(int64_t r, int d, int width) {
  constexpr int W = panel_width<T>, P = 16 / int(sizeof(T));
  const int in_block = int(r % BLOCK_ROWS), piece = (d % W / P) ^ (in_block % 8);
  return r / BLOCK_ROWS * BLOCK_ROWS * int64_t(width) + d / W * (BLOCK_ROWS * W) + in_block * W + piece * P + d % P;
}

}  // namespace ssl::cuda
