// Logarithms of the distances of rows on the sphere from rows they are told, and their gradients.
#pragma once
#include <cstdint>
#include "sweep.h"

namespace ssl {

struct LogDistanceCall {
  const void* x;  // [rows, width]
  int64_t rows, width, stride;
  DType dtype;  // not f64
  const int64_t* index;  // [count]: row first + i is compared with row index[i]
  int64_t first, count;
  double eps;  // added to every difference, and to the distance
  float* value;             // [count]
  double *norm, *distance;  // [rows], [count]
  int threads;
};
void log_distance(const LogDistanceCall& call);

struct LogDistanceBackwardCall {
  LogDistanceCall forward;  // with its results
  const float* dvalue;      // [count]
  void* dx;                 // contiguous [rows, width]
  // Who is compared with row k: those at starts[k] .. starts[k + 1] of `from`, in order.
  const int64_t *starts, *from;
};
void log_distance_backward(LogDistanceBackwardCall call);

}  // namespace ssl
