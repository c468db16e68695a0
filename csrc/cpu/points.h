// Points, which are compared by their distances or searched for the nearest: what drivers and kernels agree on.
#pragma once
#include <type_traits>
#include "sweep.h"

namespace ssl {

// A set of points as the sweeps read it: panels of rows, each of them transposed, [padded / panel][width][panel].
template <class T> struct Points {
  const Part* parts;
  int64_t part_count;
  DType dtype;
  bool normalize;
  int64_t rows, padded, width;  // padded: whole panels, filled up with zeros
  T* z;
};

// How the similarity falls off with the squared distance d2. Cauchy is a Student-t with one degree of freedom, and so
// common that it has its own name: 1 / (1 + inner d2), without an exponential. Every other logit is outer y, in base 2
// like every logit below the drivers, with y = log(1 + inner d2) (Student) or d2 (Gaussian).
enum class Decay : int { cauchy, student, gaussian };

// One reduction of a set of points against itself. T is float or double.
template <class T> struct StudentLse {
  Points<T> points;
  Rule rule;
  Decay decay;
  bool running;        // 2^logit underflows somewhere: every row counts from the nearest point it has met, y = near
  T inner, inner_low;  // their sum is the factor: its rounding alone would move all logits of a row alike
  T outer, outer_low;  // so here
  // forward: sum of 2^(outer (y - near)) of each row so far; near is 0 unless running
  double* sum;
  T* near;
  // backward: A_ij = 2^(outer y_ij) (weight_i + weight_j) / (1 + inner d2_ij), or running
  //           A_ij = (2^(outer (y_ij - near_i)) weight_i + 2^(outer (y_ij - near_j)) weight_j) / (1 + inner d2_ij)
  const T* weight;  // [padded]
  T* g;             // sum_j A_ij (z_i - z_j), laid out as z
  double* moment;   // sum over the pairs of A_ij d2_ij, one number a block of rows
  int64_t block;
};

// For every row of x the y of the largest product, the row's own column (row + skip) left out.
template <class T> struct Nearest {
  Points<T> x, y;
  bool skips;
  int64_t skip;
  int64_t* index;  // [x.rows]
  T* best;         // [x.rows]: its product, -infinity where nothing is larger; null: nobody asks
};

// Of a set against itself a tile serves both its sides. The largest products of columns so far, and their rows, which
// come in order: among equals the first stays.
template <class T> struct BestOfColumns {
  using Row = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  T* best;   // [padded], -infinity at first
  Row* row;
};

template <class T> struct PointKernels {
  int64_t panel;
  void (*pack)(const Points<T>&, int64_t first_panel, int64_t last_panel);
  int64_t (*scratch)(int64_t block);  // elements of each thread's scratch memory
  void (*forward)(const StudentLse<T>&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch);
  void (*backward)(const StudentLse<T>&, int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch);
  void (*finish)(const StudentLse<T>&, T factor, int64_t i0, int64_t i1);  // factor times g to the parts' gradients
  void (*nearest)(const Nearest<T>&, int64_t panel);  // of one panel of x's rows
  // of a set against itself: of one panel of rows those columns that are not before it, and the columns' own
  void (*nearest_of_both)(const Nearest<T>&, int64_t panel, const BestOfColumns<T>&);
};

struct PointIsa {
  PointKernels<float> f32;
  PointKernels<double> f64;

  template <class T> const PointKernels<T>& of() const;
};
template <> inline const PointKernels<float>& PointIsa::of() const { return f32; }
template <> inline const PointKernels<double>& PointIsa::of() const { return f64; }

}  // namespace ssl
