// A set of embeddings against itself.
#include "bind.h"
#include "cpu/self_lse.h"

namespace py = pybind11;

namespace ssl {
namespace {

SelfLseCall call(const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period,
                 bool normalize, double scale, int threads) {
  return {parts_of(parts), DType(dtype), Precision(precision), width, period, normalize, scale, threads};
}

}  // namespace

void bind_within(py::module_& m) {
  m.def(
      "self_lse",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads, Address neg, Address pos, Address top) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        self_lse_forward(c, pointer<void>(neg), pointer<void>(pos), pointer<void>(top));
      },
      "neg, pos and top of a set of embeddings");

  m.def(
      "self_lse_backward",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads, Address neg, Address top, Address dneg, Address dpos) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        return self_lse_backward(c, pointer<void>(neg), pointer<void>(top), pointer<void>(dneg), pointer<void>(dpos));
      },
      "writes the gradient of every part, returns that of the scale");

  m.def(
      "self_lse_softplus_mean",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        const auto [loss, dscale] = self_lse_softplus_mean(c);
        return std::pair(loss, dscale);
      },
      "the mean of softplus(neg - pos); writes the gradient of every part, returns the mean and the scale's gradient");
}

}  // namespace ssl
