// Log-sum-exp of a set of embeddings against itself on a CPU: what the binding calls.
#pragma once
#include <vector>
#include "engine.h"

namespace ssl {

struct WithinCall {
  Numbers numbers;
  std::vector<Part> parts;
  int64_t period;
};

// All results are double for f64 and float for everything else: top [rows] is the larger of a row's log-sum-exp over the
// negatives and its positives' logits; neg [rows] and pos [rows / period - 1, rows] are those two, less top.
void self_lse_forward(const WithinCall& call, void* neg, void* pos, void* top);

// Writes every part's grad; returns the gradient of the scale.
double self_lse_backward(const WithinCall& call, const void* neg, const void* top, const void* dneg, const void* dpos);

// The mean of softplus(neg - pos), and at once every part's grad and the gradient of the scale.
SoftplusMean self_lse_softplus_mean(const WithinCall& call);

}  // namespace ssl
