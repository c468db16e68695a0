// What goes through memory once: the functions of one instruction set for averages, queues, pairs of rows and views.
#pragma once
#include "aligned.h"
#include "averaging.h"
#include "log_distance.h"
#include "ring.h"
#include "views.h"

namespace ssl {

struct Streams {
  // elements [begin, end) of a pair
  void (*average)(const AveragedPair&, int64_t begin, int64_t end, const AverageRule&);
  // rows [begin, end) of the batch; row 0 goes to `pointer`
  void (*enqueue)(const EnqueueCall&, int64_t pointer, int64_t begin, int64_t end);
  // rows [begin, end) of x and y
  void (*cosine)(const CosineCall&, int64_t begin, int64_t end);
  void (*cosine_backward)(const CosineBackwardCall&, int64_t begin, int64_t end);
  // rows [begin, end) of all; of those that are compared; of all
  void (*norms)(const LogDistanceCall&, int64_t begin, int64_t end);
  void (*log_distance)(const LogDistanceCall&, int64_t begin, int64_t end);
  void (*log_distance_backward)(const LogDistanceBackwardCall&, int64_t begin, int64_t end);
  // all views of sample b; scratch: a row of `padded` elements a teacher, two more, and a number for each piece of them
  void (*views)(const ViewsCall&, int64_t b, void* scratch, int64_t padded);
};

}  // namespace ssl
