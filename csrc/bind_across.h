// One set of embeddings against another.
#pragma once
#include "bind.h"
#include "cpu/across.h"

namespace ssl {

using ReducedTuple = std::tuple<Address, Address, Address>;  // neg, pos, top

inline AcrossCall across_call(const NumbersTuple& numbers, const PartTuple& x, const Parts& y,
                              std::optional<int64_t> offset) {
  return {numbers_of(numbers), parts_of({x}), parts_of(y), offset};
}

inline Reduced reduced(const ReducedTuple& r) {
  const auto& [neg, pos, top] = r;
  return {pointer<void>(neg), pointer<void>(pos), pointer<void>(top)};
}

inline void bind_across(py::module_& m) {
  m.def(
      "cross_lse",
      [](const NumbersTuple& numbers, const PartTuple& x, const Parts& y, std::optional<int64_t> offset,
         const ReducedTuple& rows, const ReducedTuple& columns) {
        const AcrossCall c = across_call(numbers, x, y, offset);
        py::gil_scoped_release release;
        cross_lse_forward(c, reduced(rows), reduced(columns));
      },
      "neg, pos and top of the rows, and of the columns where their addresses are not 0");

  m.def(
      "cross_lse_backward",
      [](const NumbersTuple& numbers, const PartTuple& x, const Parts& y, std::optional<int64_t> offset,
         const ReducedTuple& rows, const ReducedTuple& columns, Address dneg, Address dneg_y, Address dpos) {
        const AcrossCall c = across_call(numbers, x, y, offset);
        py::gil_scoped_release release;
        return cross_lse_backward(c, reduced(rows), reduced(columns), pointer<void>(dneg), pointer<void>(dneg_y),
                                  pointer<void>(dpos));
      },
      "writes the gradient of every part that has an address for it, returns that of the scale");

  m.def(
      "attend_lse",
      [](const NumbersTuple& numbers, const PartTuple& x, const Parts& y, std::optional<int64_t> offset,
         const ReducedTuple& rows, Address mean) {
        const AcrossCall c = across_call(numbers, x, y, offset);
        py::gil_scoped_release release;
        attend_lse(c, reduced(rows), pointer<void>(mean));
      },
      "neg, pos and top of the rows, and the columns' mean under their softmax");

  m.def(
      "cross_softplus_mean",
      [](const NumbersTuple& numbers, const PartTuple& x, const Parts& y, int64_t offset) {
        const AcrossCall c = across_call(numbers, x, y, offset);
        py::gil_scoped_release release;
        const auto [loss, dscale] = cross_softplus_mean(c);
        return std::pair(loss, dscale);
      },
      "the mean of softplus(neg - pos) of both sides; writes the gradients that are asked for, returns the scale's too");

  m.def(
      "pair_softplus",
      [](const NumbersTuple& numbers, const PartTuple& x, const Parts& y, std::optional<int64_t> offset, double bias) {
        const AcrossCall c = across_call(numbers, x, y, offset);
        py::gil_scoped_release release;
        const auto [total, dscale, dbias] = pair_softplus(c, bias);
        return std::tuple(total, dscale, dbias);
      },
      "the sum over all pairs, the gradients of scale and bias; writes those of the parts in the results' dtype");
}

}  // namespace ssl
