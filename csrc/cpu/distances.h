// Log-sum-exp of similarities that fall off with the distance, on a CPU: what the binding calls.
#pragma once
#include <vector>
#include "engine.h"

namespace ssl {

struct StudentLseCall {
  Numbers numbers;  // the scale is T; points are taken as they are
  std::vector<Part> parts;
  int64_t period;
  double freedom;  // degrees of freedom; infinity is a Gaussian
};

// All results are double for f64 and float for everything else. Writes neg [rows], and what rounding took from it.
void student_lse_forward(const StudentLseCall& call, void* neg, void* low);

// Writes every part's grad; returns the gradient of the scale.
double student_lse_backward(const StudentLseCall& call, const void* neg, const void* low, const void* dneg);

}  // namespace ssl
