// What one instruction set does with points.
#pragma once
#include "distances_tiles.h"
#include "neighbours_tiles.h"
#include "points_tiles.h"

namespace ssl::SSL_ISA {

template <class T> constexpr PointKernels<T> point_kernels() {
  return {panel<T>,           pack_points<T>,    student_scratch, student_forward<T>,
          student_backward<T>, student_finish<T>, nearest_of_rows<T>, nearest_of_both<T>};
}

inline const PointIsa points{point_kernels<float>(), point_kernels<double>()};

}  // namespace ssl::SSL_ISA
