// Exponential moving averages.
#pragma once
#include "bind.h"
#include "cpu/averaging.h"
#include "random_bits.h"

namespace ssl {

inline void bind_averaging(py::module_& m) {
  using Pair = std::tuple<Address, Address, int64_t, int, int, bool, int64_t>;
  using Copy = std::tuple<Address, Address, int64_t>;
  m.def(
      "average",
      [](const std::vector<Pair>& pairs, const std::vector<Copy>& copies, double momentum, double weight,
         std::pair<int64_t, int64_t> seed_and_step, int threads) {
        AverageCall call{{}, {}, {momentum, weight, {}}, threads};
        for (const auto& [target, source, count, to, from, copied, first] : pairs)
          call.pairs.push_back({pointer<void>(target), pointer<void>(source), count, DType(to), DType(from), copied, first});
        for (const auto& [target, source, bytes] : copies)
          call.copies.push_back({pointer<void>(target), pointer<void>(source), bytes});
        random_keys(seed_and_step.first, seed_and_step.second, call.rule.keys);
        py::gil_scoped_release release;
        average(call);
      },
      "target = momentum * target + weight * source, pair by pair; copies bytes");
}

}  // namespace ssl
