// Nearest neighbours by inner product on a CPU: what the binding calls.
#pragma once
#include <optional>
#include "engine.h"

namespace ssl {

struct NearestCall {
  Numbers numbers;  // the scale changes no order
  Part x, y;
  std::optional<int64_t> skip;
};

// Writes index [rows of x].
void nearest(const NearestCall& call, int64_t* index);

}  // namespace ssl
