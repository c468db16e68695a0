// A queue of rows in a ring: the newest batch takes the place of the oldest rows.
#pragma once
#include <cstdint>
#include "sweep.h"

namespace ssl {

struct EnqueueCall {
  void* queue;  // [size, width]
  int64_t size, queue_stride;
  DType queue_dtype;
  const void* rows;  // [count, width]
  int64_t count, rows_stride;
  DType rows_dtype;
  int64_t width;
  int64_t* pointer;  // where the next row goes; advanced
  bool normalize;
  bool wrap;  // go on at the front where the end is reached; otherwise what does not fit is left out
  int threads;
};
void enqueue(const EnqueueCall& call);

}  // namespace ssl
