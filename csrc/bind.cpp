// The Python module: numbers and raw pointers in, nothing of torch's C++ at all, so that one build serves every torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include "cpu/self_lse.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using PartTuple = std::tuple<Address, Address, int64_t, int64_t>;  // data, gradient, rows, stride

template <class T> T* pointer(Address a) { return reinterpret_cast<T*>(a); }

ssl::SelfLseCall call(const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period,
                      bool normalize, double scale, int threads) {
  ssl::SelfLseCall c{{}, ssl::DType(dtype), ssl::Precision(precision), width, period, normalize, scale, threads};
  for (const auto& [data, grad, rows, stride] : parts)
    c.parts.push_back({pointer<void>(data), pointer<void>(grad), rows, stride});
  return c;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "ssl_kernels: compiled kernels, called through ssl_kernels.backends";

  m.def(
      "self_lse",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads, Address neg, Address pos, Address top) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        ssl::self_lse_forward(c, pointer<void>(neg), pointer<void>(pos), pointer<void>(top));
      },
      "neg, pos and top of a set of embeddings");

  m.def(
      "self_lse_backward",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads, Address neg, Address top, Address dneg, Address dpos) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        return ssl::self_lse_backward(c, pointer<void>(neg), pointer<void>(top), pointer<void>(dneg),
                                      pointer<void>(dpos));
      },
      "writes the gradient of every part, returns that of the scale");

  m.def(
      "self_lse_softplus_mean",
      [](const std::vector<PartTuple>& parts, int dtype, int precision, int64_t width, int64_t period, bool normalize,
         double scale, int threads) {
        const auto c = call(parts, dtype, precision, width, period, normalize, scale, threads);
        py::gil_scoped_release release;
        const auto [loss, dscale] = ssl::self_lse_softplus_mean(c);
        return std::pair(loss, dscale);
      },
      "the mean of softplus(neg - pos); writes the gradient of every part, returns the mean and the scale's gradient");

  m.def("isas", &ssl::isas, "instruction sets built in and runnable here, best first");
  m.def("isa", &ssl::isa, "the instruction set in use");
  m.def("use_isa", [](const std::string& name) { ssl::use_isa(name.c_str()); }, "run another of isas()");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
