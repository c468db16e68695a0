// Points: their distances, and their nearest neighbours.
#pragma once
#include "bind.h"
#include "cpu/distances.h"
#include "cpu/log_distance.h"
#include "cpu/neighbours.h"

namespace ssl {

using DistanceRows = std::tuple<Address, int64_t, int64_t, int64_t>;  // data, rows, width, stride

inline LogDistanceCall log_distance_call(DistanceRows x, int dtype, Address index, int64_t first, int64_t count,
                                         double eps, Address value, Address norm, Address distance, int threads) {
  const auto [data, rows, width, stride] = x;
  return {pointer<void>(data), rows, width, stride, DType(dtype), pointer<int64_t>(index), first, count, eps,
          pointer<float>(value), pointer<double>(norm), pointer<double>(distance), threads};
}

inline void bind_distances(py::module_& m) {
  m.def(
      "student_lse",
      [](const NumbersTuple& numbers, const Parts& parts, int64_t period, double freedom, Address neg, Address low) {
        const StudentLseCall call{numbers_of(numbers), parts_of(parts), period, freedom};
        py::gil_scoped_release release;
        student_lse_forward(call, pointer<void>(neg), pointer<void>(low));
      },
      "neg and low of a set of points");

  m.def(
      "student_lse_backward",
      [](const NumbersTuple& numbers, const Parts& parts, int64_t period, double freedom, Address neg, Address low,
         Address dneg) {
        const StudentLseCall call{numbers_of(numbers), parts_of(parts), period, freedom};
        py::gil_scoped_release release;
        return student_lse_backward(call, pointer<void>(neg), pointer<void>(low), pointer<void>(dneg));
      },
      "writes the gradient of every part, returns that of the scale");

  m.def(
      "nearest",
      [](const NumbersTuple& numbers, const PartTuple& x, const PartTuple& y, std::optional<int64_t> skip,
         Address index) {
        const auto parts = parts_of({x, y});
        const NearestCall call{numbers_of(numbers), parts[0], parts[1], skip};
        py::gil_scoped_release release;
        nearest(call, pointer<int64_t>(index));
      },
      "for every row of x the row of y with the largest product");

  m.def(
      "log_distance",
      [](DistanceRows x, int dtype, Address index, int64_t first, int64_t count, double eps, Address value,
         Address norm, Address distance, int threads) {
        const auto c = log_distance_call(x, dtype, index, first, count, eps, value, norm, distance, threads);
        py::gil_scoped_release release;
        log_distance(c);
      },
      "logarithms of distances on the sphere, and what their gradient needs");

  m.def(
      "log_distance_backward",
      [](DistanceRows x, int dtype, Address index, int64_t first, int64_t count, double eps, Address value,
         Address norm, Address distance, int threads, Address dvalue, Address dx) {
        const auto c = log_distance_call(x, dtype, index, first, count, eps, value, norm, distance, threads);
        py::gil_scoped_release release;
        log_distance_backward({c, pointer<float>(dvalue), pointer<void>(dx), nullptr, nullptr});
      },
      "writes the gradient");
}

}  // namespace ssl
