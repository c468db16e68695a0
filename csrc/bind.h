// What the bindings share. Numbers and raw pointers in, nothing of torch's C++ at all, so that one build serves every
// torch. One file a concept, each with a function that adds its part to the module.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <cstdint>
#include <tuple>
#include <vector>
#include "cpu/engine.h"

namespace py = pybind11;

namespace ssl {

using Address = std::uintptr_t;
using PartTuple = std::tuple<Address, Address, int64_t, int64_t>;  // data, gradient, rows, stride
using Parts = std::vector<PartTuple>;

template <class T> T* pointer(Address a) { return reinterpret_cast<T*>(a); }

inline std::vector<Part> parts_of(const Parts& tuples) {
  std::vector<Part> parts;
  for (const auto& [data, grad, rows, stride] : tuples)
    parts.push_back({pointer<void>(data), pointer<void>(grad), rows, stride});
  return parts;
}

// dtype, precision, width, normalize, scale, threads
using NumbersTuple = std::tuple<int, int, int64_t, bool, double, int>;

inline Numbers numbers_of(const NumbersTuple& n) {
  const auto& [dtype, precision, width, normalize, scale, threads] = n;
  return {DType(dtype), Precision(precision), width, normalize, scale, threads};
}

}  // namespace ssl
