// Reductions of one set of embeddings against another on a CPU: what the binding calls.
#pragma once
#include <optional>
#include <vector>
#include "engine.h"

namespace ssl {

struct AcrossCall {
  Numbers numbers;
  std::vector<Part> x, y;
  std::optional<int64_t> offset;  // (i, i + offset) is a positive
};

// Of one side: neg and top, an element each row (or column), and the positives' logits, an element each row of x. All
// are double for f64 and float for everything else; neg and pos are less top, the larger of the two. Null: nobody asks.
struct Reduced {
  void *neg, *pos, *top;
};

void cross_lse_forward(const AcrossCall& call, const Reduced& rows, const Reduced& columns);

// Writes the grad of every part that has one; returns the gradient of the scale. dpos is that of a positive's logit,
// from both sides together.
double cross_lse_backward(const AcrossCall& call, const Reduced& rows, const Reduced& columns, const void* dneg,
                          const void* dneg_y, const void* dpos);

// The rows, and mean [rows of x, width], double or float: the columns under each row's softmax of its negatives.
void attend_lse(const AcrossCall& call, const Reduced& rows, void* mean);

// The mean of softplus(neg - pos), over the rows and over their positives' columns, and at once every part's grad that is
// asked for and the gradient of the scale. There is an offset.
SoftplusMean cross_softplus_mean(const AcrossCall& call);

// The sum over all pairs of softplus(s), softplus(-s) of positives, and at once every part's grad that is asked for, in
// double or float as the results.
struct PairSoftplus {
  double total, dscale, dbias;
};
PairSoftplus pair_softplus(const AcrossCall& call, double bias);

}  // namespace ssl
