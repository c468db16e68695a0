// A set of embeddings against itself.
#pragma once
#include "bind.h"
#include "cpu/within.h"

namespace ssl {

inline void bind_within(py::module_& m) {
  m.def(
      "self_lse",
      [](const NumbersTuple& numbers, const Parts& parts, int64_t period, Address neg, Address pos, Address top) {
        const WithinCall c{numbers_of(numbers), parts_of(parts), period};
        py::gil_scoped_release release;
        self_lse_forward(c, pointer<void>(neg), pointer<void>(pos), pointer<void>(top));
      },
      "neg, pos and top of a set of embeddings");

  m.def(
      "self_lse_backward",
      [](const NumbersTuple& numbers, const Parts& parts, int64_t period, Address neg, Address top, Address dneg,
         Address dpos) {
        const WithinCall c{numbers_of(numbers), parts_of(parts), period};
        py::gil_scoped_release release;
        return self_lse_backward(c, pointer<void>(neg), pointer<void>(top), pointer<void>(dneg), pointer<void>(dpos));
      },
      "writes the gradient of every part, returns that of the scale");

  m.def(
      "self_lse_softplus_mean",
      [](const NumbersTuple& numbers, const Parts& parts, int64_t period) {
        const WithinCall c{numbers_of(numbers), parts_of(parts), period};
        py::gil_scoped_release release;
        const auto [loss, dscale] = self_lse_softplus_mean(c);
        return std::pair(loss, dscale);
      },
      "the mean of softplus(neg - pos); writes the gradient of every part, returns the mean and the scale's gradient");
}

}  // namespace ssl
