// Cosines of paired rows.
#pragma once
#include "bind.h"
#include "cpu/aligned.h"

namespace ssl {

using AlignedRows = std::tuple<Address, int64_t>;  // data, stride

inline CosineCall cosine_call(AlignedRows x, AlignedRows y, int64_t rows, int64_t width, int dtype, double eps,
                              Address cosine, Address x_norm, Address y_norm, int threads) {
  return {pointer<void>(std::get<0>(x)), pointer<void>(std::get<0>(y)), rows, width, std::get<1>(x), std::get<1>(y),
          DType(dtype), eps, pointer<void>(cosine), pointer<void>(x_norm), pointer<void>(y_norm), threads};
}

inline void bind_aligned(py::module_& m) {
  m.def(
      "cosine",
      [](AlignedRows x, AlignedRows y, int64_t rows, int64_t width, int dtype, double eps, Address value,
         Address x_norm, Address y_norm, int threads) {
        const auto c = cosine_call(x, y, rows, width, dtype, eps, value, x_norm, y_norm, threads);
        py::gil_scoped_release release;
        cosine(c);
      },
      "cosines of paired rows, and the norms");
  m.def(
      "cosine_backward",
      [](AlignedRows x, AlignedRows y, int64_t rows, int64_t width, int dtype, double eps, Address value,
         Address x_norm, Address y_norm, int threads, Address dcosine, Address dx, Address dy) {
        const auto c = cosine_call(x, y, rows, width, dtype, eps, value, x_norm, y_norm, threads);
        py::gil_scoped_release release;
        cosine_backward({c, pointer<void>(dcosine), pointer<void>(dx), pointer<void>(dy)});
      },
      "writes the gradients that are asked for");
}

}  // namespace ssl
