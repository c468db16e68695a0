// What the drivers share: memory, packing, the choice of the shift, threads, and what is left of a row.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>
#include "isa.h"
#include "parallel.h"
#include "schedule.h"
#include "sweep.h"
#include "workspace.h"

namespace ssl {

constexpr long double log2e_long = 1.442695040888963407359924681001892137L;
constexpr double log2e = log2e_long, ln2 = 0.69314718055994530942;
constexpr double infinity = std::numeric_limits<double>::infinity();

// What every call says of its numbers.
struct Numbers {
  DType dtype;
  Precision precision;
  int64_t width;
  bool normalize;
  double scale;
  int threads;
};

// A loss that is the mean of softplus(neg - pos), and the gradient of the scale.
struct SoftplusMean {
  double loss, dscale;
};

template <class T> class Engine {
 protected:
  // A side of the matrix with its memory.
  struct Embeddings {
    Side<T> side{};
    Buffer<T> z, zt, norm, top, weight, neg2, g, gt;
    Buffer<double> sum;
  };

  explicit Engine(const Numbers& n) : kernels_(kernels_of<T>(current_isa())), threads_(n.threads), scale_(n.scale) {
    s_ = {};
    s_.dtype = n.dtype;
    s_.precision = n.precision;
    s_.normalize = n.normalize;
    s_.width = n.width;
    s_.chunks = (n.width + kernels_.panel - 1) / kernels_.panel;
    s_.scale = T(n.scale);
    const long double scale2 = n.scale * log2e_long;
    s_.scale2 = T(scale2);
    s_.scale2_low = T(scale2 - s_.scale2);
  }

  void take(Embeddings& e, const std::vector<Part>& parts) {
    e.side.parts = parts.data();
    e.side.part_count = int64_t(parts.size());
    for (const Part& p : parts) e.side.rows += p.rows;
    e.side.padded = whole_panels(e.side.rows);
  }

  int64_t whole_panels(int64_t rows) const { return (rows + kernels_.panel - 1) / kernels_.panel * kernels_.panel; }

  // Below so many products a second thread costs more than it saves (some 10 us to wake it).
  void alone_if_small() {
    constexpr double worth_a_thread = 1 << 20;
    if (double(s_.x->rows) * double(s_.y->rows) * double(s_.width) < worth_a_thread) threads_ = 1;
  }

  void pack(Embeddings& e) {
    Side<T>& side = e.side;
    const Memory memory = kernels_.memory(s_, side);
    e.z = allocate<T>(memory.z);
    e.zt = allocate<T>(memory.zt);
    e.norm = allocate<T>(side.padded);
    side.z = e.z.get();
    side.zt = e.zt.get();
    side.norm = e.norm.get();
    for_ranges(side.padded / kernels_.panel, [&](int64_t a, int64_t b) { kernels_.pack(s_, side, a, b); });
  }

  size_t cells(const Side<T>& side) const { return size_t(s_.chunks) * side.padded * kernels_.panel; }

  // An upper bound of the norms of a side's packed rows.
  double longest(const Side<T>& side) const {
    if (s_.normalize) return 1;
    double most = 0;
    const int64_t packed = std::min(side.padded, side.rows - side.first);
    for (int64_t i = 0; i < packed; ++i) most = side.norm[i] <= most ? most : double(side.norm[i]);  // NaN is long
    return most;
  }

  // Logits are bounded by the norms and the scale. Where that leaves room in the exponent, a constant is subtracted
  // instead of a running maximum: sums of different tiles then add up as they are, and one exponential serves both the
  // row and the column. The window: at most 2^60 at the top, so that 2^60 of them still fit, and at least 2^-100 for
  // the largest term of a row at the bottom (float; double has ten times the room). Returns whether that is sure; up to
  // twice as much and more it is tried, since rows whose every negative points away from them are rare, and the sums
  // tell (lost()).
  bool choose_shift(double bound) {
    const double room = sizeof(T) == 8 ? 600 : 80, top = sizeof(T) == 8 ? 400 : 60, tried = sizeof(T) == 8 ? 1600 : 200;
    bound *= std::fabs(scale_) * log2e;
    s_.running = !(bound <= tried);
    s_.shift = T(s_.running ? 0 : std::max(0.0, bound - top));
    layout_ = kernels_.layout(s_);
    return bound <= room;
  }
  // Beneath it, what a row lost to underflow may count.
  static constexpr double least_sum() { return sizeof(T) == 8 ? 0x1p-700 : 0x1p-80; }
  static bool lost(const Side<T>& side) {
    return !std::all_of(side.sum, side.sum + side.rows, [](double sum) { return sum >= least_sum(); });
  }
  void run_on() {
    s_.running = true;
    s_.shift = 0;
    layout_ = kernels_.layout(s_);
  }

  void want_sums(Embeddings& e) {
    Side<T>& side = e.side;
    e.sum = allocate_zero<double>(side.padded);
    e.top = allocate<T>(side.padded);
    for (int64_t i = 0; i < side.padded; ++i) e.top[i] = s_.running ? T(-1e30) : s_.shift;
    side.sum = e.sum.get();
    side.top = e.top.get();
  }

  // The log-sum-exp of a row, in nats. A sum of NaN is not 0, so that NaN stays NaN.
  static double lse(const Side<T>& side, int64_t i) {
    return side.sum[i] == 0 ? -infinity : ln2 * (side.top[i] + std::log2(side.sum[i]));
  }

  // Whether the fixed shift serves the backward pass of a side whose results are these.
  bool within_reach(int64_t count, const T* neg, const T* top) const {
    const double least = std::log2(least_sum());
    for (int64_t i = 0; i < count; ++i)
      if (neg[i] != -infinity && !((double(neg[i]) + double(top[i])) * log2e - s_.shift >= least)) return false;
    return true;
  }

  void want_weights(Embeddings& e, const T* neg, const T* top, const T* dneg) {
    Side<T>& side = e.side;
    e.weight = allocate_zero<T>(side.padded);
    e.neg2 = allocate_zero<T>(side.padded);
    for (int64_t i = 0; i < side.rows && neg; ++i) {
      if (neg[i] == -infinity) continue;  // nobody to send a gradient to
      const double exact = (double(neg[i]) + double(top[i])) * log2e;
      e.neg2[i] = T(exact);
      // the shift, or what neg2 cannot hold, goes into the weight
      e.weight[i] = T(dneg[i] * std::exp2((s_.running ? double(e.neg2[i]) : double(s_.shift)) - exact));
    }
    side.weight = e.weight.get();
    side.neg2 = e.neg2.get();
  }

  // Zeros for a side's sum_j G_ij z_j.
  void want_gradient(Embeddings& e) {
    e.g = allocate_zero<T>(cells(e.side));
    gather(e, e.g.get(), kernels_.panel, e.side.padded * kernels_.panel, false);
  }
  // The same where finish() leaves the gradient, in the caller's memory, if the sums fit into it as they are: a quarter
  // of what a large call takes otherwise. Blocks of the walk must not straddle parts.
  void want_gradient_in_parts(Embeddings& e) {
    Side<T>& side = e.side;
    const int64_t block = &side == s_.x ? layout_.block_x : layout_.block_y;
    bool fits = sizeof(T) == 8 || s_.wide_gradients || s_.dtype == DType::f32;
    fits = fits && s_.width % kernels_.panel == 0 && side.rows == side.padded;
    for (int64_t k = 0; k < side.part_count; ++k)
      fits = fits && side.parts[k].grad && (side.part_count == 1 || side.parts[k].rows % block == 0);
    if (!fits) return want_gradient(e);
    for (int64_t k = 0; k < side.part_count; ++k) {
      T* const grad = static_cast<T*>(side.parts[k].grad);
      const int64_t count = side.parts[k].rows * s_.width;
      prefer_huge_pages(grad, sizeof(T) * count);
      for_ranges(count, [&](int64_t a, int64_t b) { std::fill(grad + a, grad + b, T(0)); });
    }
    gather(e, static_cast<T*>(side.parts[0].grad), s_.width, kernels_.panel, true);
  }
  void gather(Embeddings& e, T* g, int64_t row, int64_t chunk, bool in_parts) {
    e.gt = allocate_zero<T>(kernels_.memory(s_, e.side).gt);
    e.side.gt = e.gt.get();
    e.side.g = g;
    e.side.g_row = row;
    e.side.g_chunk = chunk;
    e.side.g_in_parts = in_parts;
  }

  // For both sweeps of one call, where the matrix is small: the second needs neither products nor exponentials.
  void keep_entries() {
    if (s_.running || !kernels_.keeps_entries) return;
    entries_ = allocate<T>(s_.x->padded * s_.y->padded);
    s_.entries = entries_.get();
  }

  // The gradient of a side's rows; returns sum_i z_i . dz_i. Fixed groups of rows, added up in order: the same sum for
  // any number of threads.
  double finish(const Side<T>& side) {
    const int64_t group = 64, groups = (side.rows + group - 1) / group;
    std::vector<double> euler(groups);
    for_ranges(groups, [&](int64_t a, int64_t b) {
      for (int64_t k = a; k < b; ++k)
        euler[k] = kernels_.finish(s_, side, k * group, std::min(side.rows, (k + 1) * group));
    });
    return std::accumulate(euler.begin(), euler.end(), 0.0);
  }

  // The sum of softplus(neg - pos) over `count` rows, and of its mean's gradient `weight` times each: into dneg, and
  // less it into dpos.
  static double add_softplus(const T* neg, const T* pos, int64_t count, double weight, T* dneg, T* dpos) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T x = neg[i] - pos[i], e = std::exp(-std::fabs(x));
      sum += (x > 0 ? x : T(0)) + std::log1p(e);
      const T share = T(weight) * ((x > 0 ? T(1) : e) / (1 + e));
      dneg[i] += share;
      dpos[i] -= share;
    }
    return sum;
  }

  template <class F> void for_ranges(int64_t count, F&& f) { ssl::for_ranges(threads_, count, f); }

  // Visits every block of the matrix, of its upper triangle for a set against itself.
  void sweep(typename Kernels<T>::Block* visit) {
    const int64_t bx = layout_.block_x, by = layout_.block_y, mx = s_.x->padded, my = s_.y->padded;
    const int nx = int((mx + bx - 1) / bx), ny = int((my + by - 1) / by);
    PairWalk walk = s_.self() ? PairWalk::triangle(nx) : PairWalk::rectangle(nx, ny);
    walk.run(
        threads_, [&] { return allocate<T>(layout_.scratch); },
        [&](int i, int j, Buffer<T>& scratch) {
          visit(s_, i * bx, std::min(mx, (i + 1) * bx), j * by, std::min(my, (j + 1) * by), scratch.get());
        });
  }

  const Kernels<T>& kernels_;
  int threads_;
  double scale_;
  Sweep<T> s_;
  Layout layout_;
  Buffer<T> entries_;
};

}  // namespace ssl
