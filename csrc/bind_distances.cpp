// Points: their distances, and their nearest neighbours.
#include "bind.h"
#include "cpu/distances.h"
#include "cpu/neighbours.h"

namespace py = pybind11;

namespace ssl {

void bind_distances(py::module_& m) {
  m.def(
      "student_lse",
      [](const NumbersTuple& numbers, const std::vector<PartTuple>& parts, int64_t period, double freedom, Address neg,
         Address low) {
        const StudentLseCall call{numbers_of(numbers), parts_of(parts), period, freedom};
        py::gil_scoped_release release;
        student_lse_forward(call, pointer<void>(neg), pointer<void>(low));
      },
      "neg and low of a set of points");

  m.def(
      "student_lse_backward",
      [](const NumbersTuple& numbers, const std::vector<PartTuple>& parts, int64_t period, double freedom, Address neg,
         Address low, Address dneg) {
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
}

}  // namespace ssl
