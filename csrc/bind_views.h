// Cross-entropies between views, logits given.
#pragma once
#include <algorithm>
#include "bind.h"
#include "cpu/views.h"

namespace ssl {

// The address of every row of several tensors, one below the other.
inline std::vector<void*> rows_of(const std::vector<std::tuple<Address, int64_t, int64_t>>& tensors, int64_t bytes) {
  std::vector<void*> rows;
  for (const auto& [data, count, stride] : tensors)
    for (int64_t i = 0; i < count; ++i) rows.push_back(pointer<char>(data) + i * stride * bytes);
  return rows;
}

inline void bind_views(py::module_& m) {
  using Tensors = std::vector<std::tuple<Address, int64_t, int64_t>>;  // data, rows, stride
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int>;   // batch, students, teachers, width, dtype
  using Rule = std::tuple<double, double, bool>;                       // scales of student and teacher, same
  m.def(
      "view_cross_entropy",
      [](const Shape& shape, const Rule& rule, const Tensors& student, const Tensors& teacher,
         std::pair<Address, int64_t> center, Address top, Address share, Address value, Address dvalue,
         const Tensors& dstudent, const Tensors& dteacher, bool read_next, int threads) {
        const auto& [batch, students, teachers, width, dtype] = shape;
        const auto& [student_scale, teacher_scale, same] = rule;
        py::gil_scoped_release release;
        const int64_t bytes = dtype == 1 ? 8 : dtype == 0 ? 4 : 2;
        const auto s = rows_of(student, bytes), t = rows_of(teacher, bytes), ds = rows_of(dstudent, bytes),
                   dt = rows_of(dteacher, bytes);
        // More than an L2 holds goes to memory without being read from there first, which at 4 MiB is a quarter of a call.
        constexpr int64_t kept_in_caches = int64_t(2) << 20;
        const bool past_caches = !read_next && batch * students * width * bytes > kept_in_caches;
        view_cross_entropy({batch, students, teachers, width, DType(dtype), s.data(), t.data(),
                            pointer<void>(center.first), center.second, student_scale, teacher_scale, same, threads,
                            pointer<void>(top), pointer<void>(share), pointer<void>(value), pointer<void>(dvalue),
                            ds.empty() ? nullptr : ds.data(), dt.empty() ? nullptr : dt.data(), past_caches});
      },
      "the sum over the pairs of every sample where its address is not 0, and the gradients that have rows to go to");
}

}  // namespace ssl
