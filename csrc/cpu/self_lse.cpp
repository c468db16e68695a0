#include "self_lse.h"
#include <cmath>
#include <limits>
#include <numeric>
#include "isa.h"
#include "parallel.h"
#include "schedule.h"
#include "workspace.h"

namespace ssl {
namespace {

constexpr long double log2e_long = 1.442695040888963407359924681001892137L;
constexpr double log2e = log2e_long, ln2 = 0.69314718055994530942;

// Below this many products a second thread costs more than it saves (some 10 us to wake it).
constexpr double worth_a_thread = 1 << 20;

template <class T> class Job {
 public:
  Job(const SelfLseCall& call, bool with_gradient)
      : kernels_(kernels_of<T>(current_isa())), threads_(call.threads) {
    s_ = {};
    s_.parts = call.parts.data();
    s_.part_count = int64_t(call.parts.size());
    s_.dtype = call.dtype;
    s_.precision = call.precision;
    s_.with_gradient = with_gradient;
    s_.normalize = call.normalize;
    for (const Part& p : call.parts) s_.rows += p.rows;
    s_.width = call.width;
    s_.same = {call.period};
    scale_ = call.scale;
    s_.scale = T(call.scale);
    const long double scale2 = call.scale * log2e_long;
    s_.scale2 = T(scale2);
    s_.scale2_low = T(scale2 - s_.scale2);
    const int64_t panel = kernels_.panel;
    s_.padded = (s_.rows + panel - 1) / panel * panel;
    s_.chunks = (s_.width + panel - 1) / panel;
    choose_shift(call);
    layout_ = kernels_.layout(s_);
    if (double(s_.rows) * double(s_.rows) * double(s_.width) < worth_a_thread) threads_ = 1;

    const size_t cells = size_t(s_.chunks) * s_.padded * panel;
    z_ = allocate<T>(cells);
    zt_ = allocate<T>(layout_.zt);
    norm_ = allocate<T>(s_.padded);
    s_.z = z_.get();
    s_.zt = zt_.get();
    s_.norm = norm_.get();
    for_ranges(s_.padded / panel, [&](int64_t a, int64_t b) { kernels_.pack(s_, a, b); });
  }

  void forward(T* neg, T* pos, T* top) {
    auto sum = allocate_zero<double>(s_.padded);
    auto largest = allocate<T>(s_.padded);
    for (int64_t i = 0; i < s_.padded; ++i) largest[i] = s_.running ? T(-1e30) : s_.shift;
    s_.sum = sum.get();
    s_.top = largest.get();
    s_.pos = pos;
    sweep([&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
      kernels_.forward(s_, i0, i1, j0, j1, scratch);
    });
    T* const end = pos + (s_.rows / s_.same.period - 1) * s_.rows;
    for (int64_t i = 0; i < s_.rows; ++i) {
      // NaN stays NaN on either side: a sum of NaN is not 0, and NaN is never less than what it is compared with
      const double lse = sum[i] == 0 ? -infinity : ln2 * (largest[i] + std::log2(sum[i]));
      double most = lse;
      for (T* p = pos + i; p < end; p += s_.rows) most = scale_ * *p < most ? most : scale_ * *p;
      top[i] = most == -infinity ? T(0) : T(most);  // a row of nothing at all
      neg[i] = T(lse - double(top[i]));
      for (T* p = pos + i; p < end; p += s_.rows) *p = T(scale_ * *p - double(top[i]));
    }
  }

  double backward(const T* neg, const T* top, const T* dneg, const T* dpos) {
    auto weight = allocate_zero<T>(s_.padded), neg2 = allocate_zero<T>(s_.padded);
    if (s_.same.period > 1) {
      for (int64_t i = 0; i < s_.rows; ++i) {
        const double exact = (double(neg[i]) + double(top[i])) * log2e;
        neg2[i] = T(exact);
        // the shift, or what neg2 cannot hold, goes into the weight
        weight[i] = T(dneg[i] * std::exp2((s_.running ? double(neg2[i]) : double(s_.shift)) - exact));
      }
    }
    s_.pos = nullptr;  // the tiles of this sweep keep no positives
    auto g = allocate_zero<T>(layout_.g);
    s_.weight = weight.get();
    s_.neg2 = neg2.get();
    s_.dpos = dpos;
    s_.g = g.get();
    sweep([&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, T* scratch) {
      kernels_.backward(s_, i0, i1, j0, j1, scratch);
    });
    // Fixed groups of rows, added up in order: the same sum for any number of threads
    const int64_t group = 64, groups = (s_.rows + group - 1) / group;
    std::vector<double> euler(groups);
    for_ranges(groups, [&](int64_t a, int64_t b) {
      for (int64_t k = a; k < b; ++k) euler[k] = kernels_.finish(s_, k * group, std::min(s_.rows, (k + 1) * group));
    });
    // Every logit counts twice in sum_i z_i . dz_i: once for its row, once for its column
    return 0.5 * std::accumulate(euler.begin(), euler.end(), 0.0);
  }

  // Both passes over one set of packed rows, with the mean of softplus(neg - pos) between them.
  SoftplusMean softplus_mean() {
    const int64_t others = s_.rows / s_.same.period - 1, count = others * s_.rows;
    auto neg = allocate<T>(s_.rows), top = allocate<T>(s_.rows), dneg = allocate_zero<T>(s_.rows);
    auto pos = allocate<T>(count);
    forward(neg.get(), pos.get(), top.get());
    double loss = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = k % s_.rows;
      const T x = neg[i] - pos[k], e = std::exp(-std::fabs(x));
      loss += (x > 0 ? x : T(0)) + std::log1p(e);
      const T share = (x > 0 ? T(1) : e) / (1 + e) / T(count);
      dneg[i] += share;
      pos[k] = -share;
    }
    return {loss / double(count), backward(neg.get(), top.get(), dneg.get(), pos.get())};
  }

 private:
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  // Logits of unit rows are bounded by the scale. Where that leaves room in the exponent, a constant is subtracted
  // instead of a running maximum: sums of different tiles then add up as they are, and one exponential serves both the
  // row and the column. The window: at most 2^60 at the top, so that 2^60 of them still fit, and at least 2^-100 for
  // the largest term of a row at the bottom (float; double has ten times the room).
  void choose_shift(const SelfLseCall& call) {
    double bound = std::fabs(call.scale) * log2e;
    if (!call.normalize) bound = infinity;
    const double room = sizeof(T) == 8 ? 600 : 80, top = sizeof(T) == 8 ? 400 : 60;
    s_.running = !(bound <= room);
    s_.shift = T(s_.running ? 0 : std::max(0.0, bound - top));
  }

  template <class F> void for_ranges(int64_t count, F&& f) {
    const int64_t pieces = std::min<int64_t>(threads_, count);
    std::atomic<int64_t> next{0};
    on_threads(int(pieces), [&] {
      for (int64_t k; (k = next.fetch_add(1)) < pieces;) f(count * k / pieces, count * (k + 1) / pieces);
    });
  }

  template <class F> void sweep(F&& visit) {
    const int64_t block = layout_.block, blocks = (s_.padded + block - 1) / block;
    PairWalk walk{int(blocks)};
    walk.run(
        threads_, [&] { return allocate<T>(layout_.scratch); },
        [&](int i, int j, Buffer<T>& scratch) {
          visit(i * block, std::min(s_.padded, (i + 1) * block), j * block, std::min(s_.padded, (j + 1) * block),
                scratch.get());
        });
  }

  const Kernels<T>& kernels_;
  int threads_;
  double scale_;
  SelfLse<T> s_;
  Layout layout_;
  Buffer<T> z_, zt_, norm_;
};

}  // namespace

void self_lse_forward(const SelfLseCall& call, void* neg, void* pos, void* top) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Job<T>(call, false).forward(static_cast<T*>(neg), static_cast<T*>(pos), static_cast<T*>(top));
  };
  call.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

double self_lse_backward(const SelfLseCall& call, const void* neg, const void* top, const void* dneg,
                         const void* dpos) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return Job<T>(call, true).backward(static_cast<const T*>(neg), static_cast<const T*>(top), static_cast<const T*>(dneg),
                                 static_cast<const T*>(dpos));
  };
  return call.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

SoftplusMean self_lse_softplus_mean(const SelfLseCall& call) {
  return call.dtype == DType::f64 ? Job<double>(call, true).softplus_mean() : Job<float>(call, true).softplus_mean();
}

}  // namespace ssl
