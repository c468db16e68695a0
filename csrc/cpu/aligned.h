// Cosines of the rows of one matrix with the rows of another, pair by pair, and their gradients.
#pragma once
#include <cstdint>
#include "sweep.h"

namespace ssl {

// Results are double for f64 and float for everything else.
struct CosineCall {
  const void *x, *y;  // [rows, width]
  int64_t rows, width, x_stride, y_stride;
  DType dtype;
  double eps;  // a norm is at least this
  void *cosine, *x_norm, *y_norm;  // [rows]
  int threads;
};
void cosine(const CosineCall& call);

struct CosineBackwardCall {
  CosineCall forward;    // with its results
  const void* dcosine;   // [rows]
  void *dx, *dy;         // contiguous [rows, width]; null where nobody asks
};
void cosine_backward(const CosineBackwardCall& call);

}  // namespace ssl
