// Exponential moving averages of any number of tensors, in one pass over their memory.
#pragma once
#include <cstdint>
#include <vector>
#include "sweep.h"

namespace ssl {

// A tensor and the one that its average follows, both dense and in the same order of elements.
struct AveragedPair {
  void* target;
  const void* source;
  int64_t count;
  DType to, from;
  bool copied;    // the target becomes the source
  int64_t first;  // number of the first element among all elements of the call: it picks the element's random bits
};

// Bytes that are copied as they are: integers, flags.
struct CopiedBytes {
  void* target;
  const void* source;
  int64_t count;
};

// target = momentum * target + weight * source. Two numbers whose sum is 1, because a small weight has more digits of its
// own than 1 - momentum has in a float.
struct AverageRule {
  double momentum, weight;
  // Targets of 16 bits would stand still where a step is smaller than their last digit. They are rounded up or down at
  // random, with the chances that keep the expectation, by random bits made of these keys and the element's number.
  uint32_t keys[2];
};

struct AverageCall {
  std::vector<AveragedPair> pairs;
  std::vector<CopiedBytes> copies;
  AverageRule rule;
  int threads;
};
void average(const AverageCall& call);

}  // namespace ssl
