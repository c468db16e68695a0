// The Python module of the CUDA kernels: addresses, numbers and the stream as integers in, nothing of torch at all. A refused
// launch is an exception that says which and why.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>
#include "cuda/api.h"

namespace py = pybind11;

namespace ssl::cuda {
namespace {

using Address = std::uintptr_t;

void* at(Address a) { return reinterpret_cast<void*>(a); }
float* floats(Address a) { return reinterpret_cast<float*>(a); }

void check(int code, const char* kernel) {
  if (code) throw std::runtime_error(std::string("ssl_kernels: CUDA did not launch ") + kernel + ": " + error_text(code));
}

// What Python gives, in the order of the structs of api.h.
using NumberTuple = std::tuple<Address, int>;
using SideTuple = std::tuple<Address, Address, Address, int, int>;
using MatrixTuple =
    std::tuple<SideTuple, SideTuple, int, int, int64_t, bool, int, bool, NumberTuple, double, int>;
using InputTuple = std::tuple<Address, Address, int64_t, int, int>;
using InputsTuple = std::tuple<std::vector<InputTuple>, int, int>;

Number number_of(const NumberTuple& n) { return {at(std::get<0>(n)), DType(std::get<1>(n))}; }

Side side_of(const SideTuple& s) {
  const auto& [units, factors, largest, rows, padded] = s;
  return {at(units), floats(factors), floats(largest), rows, padded};
}

Matrix matrix_of(const MatrixTuple& m) {
  const auto& [x, y, operands, width, low_offset, self, step, normalize, scale, multiplier, arch] = m;
  return {side_of(x), side_of(y), Operands(operands), width,           low_offset, self,
          step,       normalize,  number_of(scale),   multiplier, arch};
}

Inputs inputs_of(const InputsTuple& inputs) {
  const auto& [parts, dtype, width] = inputs;
  if (parts.size() > size_t(MAX_INPUTS)) throw std::invalid_argument("more inputs than a launch takes");
  Inputs result{{}, int(parts.size()), DType(dtype), width};
  for (size_t k = 0; k < parts.size(); ++k) {
    const auto& [data, grad, stride, rows, first] = parts[k];
    result.parts[k] = {at(data), at(grad), stride, rows, first};
  }
  return result;
}

void bind_sweeps(py::module_& m) {
  m.def("tile", [](int kernel, int operands, int width, int arch) {
    const Tile t = tile(Kernel(kernel), Operands(operands), width, arch);
    return std::tuple(t.block_m, t.block_n, t.block_d, t.alone);
  });
  m.def("forward", [](const MatrixTuple& matrix, Address x_sums, Address x_tops, Address y_sums, Address y_tops, int x_group,
                      int y_group, Address stream) {
    check(forward({matrix_of(matrix), at(x_sums), at(x_tops), at(y_sums), at(y_tops), x_group, y_group}, at(stream)),
          "the forward sweep");
  });
  m.def("backward", [](const MatrixTuple& matrix, Address x_weights, Address y_weights, bool of_columns, Address received,
                       int span, Address stream) {
    check(backward({matrix_of(matrix), at(x_weights), at(y_weights), of_columns, at(received), span}, at(stream)),
          "the backward sweep");
  });
  m.def("gradient_entries", [](const MatrixTuple& matrix, Address x_weights, Address y_weights, bool of_columns,
                               Address entries, int first_row, int rows, Address stream) {
    GradientEntries call{};
    static_cast<Backward&>(call) = {matrix_of(matrix), at(x_weights), at(y_weights), of_columns, nullptr, 0};
    call.span = call.matrix.y.padded;
    static_cast<Kept&>(call) = {at(entries), first_row, rows};
    check(gradient_entries(call, at(stream)), "the sweep of kept gradients");
  });
  m.def("attend", [](const MatrixTuple& matrix, Address sums, Address tops, Address received, int span, Address stream) {
    check(attend({matrix_of(matrix), at(sums), at(tops), at(received), span}, at(stream)), "the attending sweep");
  });
  m.def("softplus", [](const MatrixTuple& matrix, NumberTuple bias, Address sums, Address largest, Address received, int span,
                       Address stream) {
    check(softplus({matrix_of(matrix), number_of(bias), at(sums), at(largest), at(received), span}, at(stream)),
          "the sweep over pairs");
  });
  m.def("softplus_entries", [](const MatrixTuple& matrix, NumberTuple bias, Address unit, Address entries, int first_row,
                               int rows, Address stream) {
    SoftplusEntries call{};
    static_cast<Softplus&>(call) = {matrix_of(matrix), number_of(bias), nullptr, nullptr, nullptr, 0};
    static_cast<Kept&>(call) = {at(entries), first_row, rows};
    call.span = call.matrix.y.padded;
    call.unit = at(unit);
    check(softplus_entries(call, at(stream)), "the sweep of kept derivatives");
  });
}

void bind_neighbours(py::module_& m) {
  m.def("nearest", [](const MatrixTuple& matrix, Address products, Address indices, int span, Address index, Address stream) {
    check(nearest({matrix_of(matrix), at(products), reinterpret_cast<int*>(indices), span,
                   reinterpret_cast<int64_t*>(index)},
                  at(stream)),
          "the search for neighbours");
  });
  using PointsTuple = std::tuple<Address, bool, int, int, int, int, NumberTuple, double, double>;
  auto points_of = [](const PointsTuple& p) {
    const auto& [points, doubles, rows, width, period, falloff, scale, multiplier, dof] = p;
    return Points{at(points), doubles, rows, width, period, Falloff(falloff), number_of(scale), multiplier, dof};
  };
  m.def("point_sums", [points_of](const PointsTuple& points, Address neg, Address low, Address stream) {
    check(point_sums({points_of(points), at(neg), at(low)}, at(stream)), "the sums over points");
  });
  m.def("point_gradients", [points_of](const PointsTuple& points, Address neg, Address low, Address dneg, Address near,
                                       Address weight, Address received, Address moments, Address stream) {
    check(point_gradients({points_of(points), at(neg), at(low), at(dneg), at(near), at(weight), at(received), at(moments)},
                          at(stream)),
          "the gradients of points");
  });
}

void bind_views(py::module_& m) {
  using RowsTuple = std::tuple<Address, int64_t>;  // data, stride
  using ViewsTuple = std::tuple<RowsTuple, RowsTuple, RowsTuple, int, std::tuple<int, int, int, int, int, int>, bool, bool,
                                double, double>;
  using SumsTuple = std::tuple<Address, Address, Address, Address, Address>;
  auto views_of = [](const ViewsTuple& v) {
    const auto& [student, teacher, center, dtype, numbers, given, same, student_scale, teacher_scale] = v;
    const auto& [batch, views, first, students, teachers, width] = numbers;
    return Views{at(std::get<0>(student)), at(std::get<0>(teacher)), at(std::get<0>(center)), DType(dtype),
                 std::get<1>(student), std::get<1>(teacher), int(std::get<1>(center)), batch, views, first, students,
                 teachers, width, given, same, student_scale, teacher_scale};
  };
  auto sums_of = [views_of](const ViewsTuple& views, const SumsTuple& sums) {
    const auto& [student_tops, student_sums, teacher_tops, teacher_sums, along] = sums;
    return ViewSums{views_of(views), at(student_tops), at(student_sums), at(teacher_tops), at(teacher_sums), at(along)};
  };
  m.def("biased_lse", [](Address logits, int dtype, int64_t rows, int64_t stride, int width, Address bias, double multiplier,
                         bool of_rows, Address out, Address stream) {
    check(biased_lse({at(logits), DType(dtype), rows, stride, width, at(bias), multiplier, of_rows, at(out)}, at(stream)),
          "the sums with a bias");
  });
  m.def("view_columns", [views_of](const ViewsTuple& views) { return view_columns(views_of(views)); });
  m.def("view_sums", [sums_of](const ViewsTuple& views, const SumsTuple& sums, Address stream) {
    check(view_sums(sums_of(views, sums), at(stream)), "the sums over views");
  });
  m.def("view_values", [views_of, sums_of](const ViewsTuple& views, const SumsTuple& sums, int chunks, Address value,
                                           Address kept, Address stream) {
    check(view_values({views_of(views), sums_of(views, sums), chunks, at(value), at(kept)}, at(stream)),
          "the values of views");
  });
  m.def("view_gradients", [views_of](const ViewsTuple& views, Address dvalue, Address kept, Address dstudent,
                                     Address dteacher, Address stream) {
    check(view_gradients({views_of(views), at(dvalue), at(kept), at(dstudent), at(dteacher)}, at(stream)),
          "the gradients of views");
  });
}

void bind_rows(py::module_& m) {
  m.def("prepare", [](const InputsTuple& inputs, int operands, bool normalize, Address units, Address factors, int padded,
                      int width, int64_t low_offset, Address stream) {
    check(prepare({inputs_of(inputs), Operands(operands), normalize, at(units), floats(factors), padded, width, low_offset},
                  at(stream)),
          "the preparation of rows");
  });
  m.def("largest_factors", [](std::pair<Address, Address> factors, std::pair<int, int> rows, int sides, Address largest,
                              Address stream) {
    check(largest_factors({{floats(factors.first), floats(factors.second)}, {rows.first, rows.second}, sides,
                           floats(largest)},
                          at(stream)),
          "the largest factors");
  });
  m.def("combine", [](const MatrixTuple& matrix, Address sums, Address tops, int groups, Address received, Address neg,
                      Address pos, Address top, bool positives, Address mean, int entries, Address stream) {
    check(combine({matrix_of(matrix), at(sums), at(tops), groups, at(received), at(neg), at(pos), at(top), positives,
                   at(mean), entries},
                  at(stream)),
          "the results of rows");
  });
  using WeighTuple = std::tuple<Address, Address, Address, Address, Address, int, int>;
  m.def("weigh", [](const WeighTuple& x, const WeighTuple& y, bool doubles, bool normalize, NumberTuple scale,
                    double multiplier, Address unit, Address stream) {
    auto side = [](const WeighTuple& s) {
      const auto& [neg, top, dneg, factors, weights, rows, padded] = s;
      return WeighSide{at(neg), at(top), at(dneg), reinterpret_cast<const float*>(factors), at(weights), rows, padded};
    };
    check(weigh({{side(x), side(y)}, doubles, normalize, number_of(scale), multiplier, at(unit)}, at(stream)),
          "the weights of rows");
  });
  m.def("finish", [](const MatrixTuple& matrix, const InputsTuple& inputs, int grads, Address received, int spans,
                     Address unit, Address dpos, Address y_dpos, Address along, Address stream) {
    check(finish({matrix_of(matrix), inputs_of(inputs), DType(grads), at(received), spans, at(unit), at(dpos), at(y_dpos),
                  at(along)},
                 at(stream)),
          "the gradients of rows");
  });
  m.def("finish_blocks", &finish_blocks);
  m.def("sum_scale", [](Address along, int count, bool doubles, double multiplier, Address dscale, int dtype,
                        Address stream) {
    check(sum_scale({at(along), count, doubles, multiplier, at(dscale), DType(dtype)}, at(stream)),
          "the gradient of the scale");
  });
  m.def("add_up", [](Address sums, int count, Address along, int along_count, bool doubles, double multiplier,
                     Address value, Address dscale, Address dbias, Address stream) {
    check(add_up({at(sums), count, at(along), along_count, doubles, multiplier, at(value), at(dscale), at(dbias)},
                 at(stream)),
          "the sum over pairs");
  });
}

void bind_streams(py::module_& m) {
  using Pair = std::tuple<Address, Address, int64_t, int64_t, int, int, bool>;
  using Copy = std::tuple<Address, Address, int64_t>;
  m.def("average", [](const std::vector<Pair>& pairs, const std::vector<Copy>& copies, NumberTuple momentum, double keep,
                      double take, Address rounding, Address stream) {
    std::vector<AveragedPair> averaged;
    for (const auto& [target, source, count, first, to, from, copied] : pairs)
      averaged.push_back({at(target), at(source), count, first, DType(to), DType(from), copied});
    std::vector<CopiedBytes> bytes;
    for (const auto& [target, source, count] : copies) bytes.push_back({at(target), at(source), count});
    const Number number = number_of(momentum);
    check(average({averaged.data(), int64_t(averaged.size()), bytes.data(), int64_t(bytes.size()), number.at, number.dtype,
                   keep, take, reinterpret_cast<int64_t*>(rounding)},
                  at(stream)),
          "the averages");
  });
  using Matrix2D = std::tuple<Address, int64_t, int64_t, int>;  // data, rows, stride, dtype
  m.def("enqueue", [](const Matrix2D& queue, const Matrix2D& rows, int64_t width, Address pointer, bool normalize, bool wrap,
                      Address stream) {
    const auto& [to, size, queue_stride, queue_dtype] = queue;
    const auto& [from, count, rows_stride, rows_dtype] = rows;
    check(enqueue({at(to), size, queue_stride, DType(queue_dtype), at(from), count, rows_stride, DType(rows_dtype), width,
                   reinterpret_cast<int64_t*>(pointer), normalize, wrap},
                  at(stream)),
          "the queue's update");
  });
  using CosineTuple =
      std::tuple<Address, Address, int64_t, int64_t, int64_t, int64_t, int, double, Address, Address, Address>;
  auto cosine_of = [](const CosineTuple& c) {
    const auto& [x, y, rows, width, x_stride, y_stride, dtype, eps, value, x_norm, y_norm] = c;
    return Cosine{at(x), at(y), rows, width, x_stride, y_stride, DType(dtype), eps, at(value), at(x_norm), at(y_norm)};
  };
  m.def("cosine", [cosine_of](const CosineTuple& call, Address stream) {
    check(cosine(cosine_of(call), at(stream)), "the cosines");
  });
  m.def("cosine_backward", [cosine_of](const CosineTuple& call, Address dvalue, Address dx, Address dy, Address stream) {
    check(cosine_backward({cosine_of(call), at(dvalue), at(dx), at(dy)}, at(stream)), "the gradients of cosines");
  });
}

}  // namespace
}  // namespace ssl::cuda

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "ssl_kernels: CUDA kernels, called through ssl_kernels.backends";
  ssl::cuda::bind_sweeps(m);
  ssl::cuda::bind_neighbours(m);
  ssl::cuda::bind_rows(m);
  ssl::cuda::bind_views(m);
  ssl::cuda::bind_streams(m);
  m.def("driver_version", &ssl::cuda::driver_version, "13000 for CUDA 13.0; 0 without a driver");
  m.def("runtime_version", &ssl::cuda::runtime_version, "what this module was built with");
  m.def(
      "complaint",
      [] {
        const int code = ssl::cuda::runs_here();
        return std::string(code ? ssl::cuda::error_text(code) : "");
      },
      "why the kernels do not run on the current device; empty if they do");
#ifdef SSL_EMULATED
  m.attr("emulated") = true;
  m.attr("hopper") = true;
#else
  m.attr("emulated") = false;
#ifdef SSL_WITH_SM90A
  m.attr("hopper") = true;
#else
  m.attr("hopper") = false;  // without code for it, its own kernels are empty
#endif
#endif
}
