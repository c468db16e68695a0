#include "distances.h"
#include "points.h"

namespace ssl {
namespace {

// Below this many differences a second thread costs more than it saves.
constexpr double worth_a_thread = 1 << 17;

template <class T> class Job {
 public:
  explicit Job(const StudentLseCall& call) : kernels_(current_isa().points->of<T>()), threads_(call.numbers.threads) {
    s_ = {};
    Points<T>& p = s_.points;
    p = {call.parts.data(), int64_t(call.parts.size()), call.numbers.dtype, false, 0, 0, call.numbers.width, nullptr};
    for (const Part& part : call.parts) p.rows += part.rows;
    const int64_t panel = kernels_.panel;
    p.padded = (p.rows + panel - 1) / panel * panel;
    s_.rule = Rule::same_sample(call.period);
    if (double(p.rows) * double(p.rows) * double(p.width) < worth_a_thread) threads_ = 1;
    // some 32 blocks: half as many pairs can run at once
    s_.block = panel;
    while (s_.block < 512 && s_.block * 32 < p.rows) s_.block *= 2;

    z_ = allocate<T>(size_t(p.padded) * p.width);
    p.z = z_.get();
    for_ranges(threads_, p.padded / panel, [&](int64_t a, int64_t b) { kernels_.pack(p, a, b); });
    choose_decay(call);
  }

  void forward(T* neg, T* low) {
    const int64_t rows = s_.points.rows;
    auto sum = allocate_zero<double>(s_.points.padded);
    auto near = allocate<T>(s_.points.padded);
    for (int64_t i = 0; i < s_.points.padded; ++i) near[i] = s_.running ? std::numeric_limits<T>::max() : T(0);
    s_.sum = sum.get();
    s_.near = near.get();
    sweep(kernels_.forward);
    for (int64_t i = 0; i < rows; ++i) {
      const double exact = sum[i] == 0 ? -infinity : ln2 * (outer_ * near[i] + std::log2(sum[i]));
      neg[i] = T(exact);
      low[i] = sum[i] == 0 ? T(0) : T(exact - neg[i]);
    }
  }

  double backward(const T* neg, const T* low, const T* dneg) {
    const Points<T>& p = s_.points;
    auto weight = allocate_zero<T>(p.padded), near = allocate_zero<T>(p.padded);
    for (int64_t i = 0; i < p.rows; ++i) {
      if (neg[i] == T(-infinity)) continue;  // nobody to send a gradient to
      const double exact = (double(neg[i]) + double(low[i])) * log2e;
      if (s_.running) near[i] = T(exact / outer_);
      weight[i] = T(dneg[i] * std::exp2(outer_ * near[i] - exact));  // what near cannot hold goes into the weight
    }
    const int64_t blocks = (p.padded + s_.block - 1) / s_.block;
    auto g = allocate_zero<T>(size_t(p.padded) * p.width);
    auto moment = allocate_zero<double>(blocks);
    s_.weight = weight.get();
    s_.near = near.get();
    s_.g = g.get();
    s_.moment = moment.get();
    sweep(kernels_.backward);
    // d logit / d d2 = -T slope / (1 + inner d2), d d2 / d z_i = 2 (z_i - z_j), and z_j has the same from its side
    for_ranges(threads_, p.rows, [&](int64_t a, int64_t b) { kernels_.finish(s_, T(-2 * scale_ * slope_), a, b); });
    return -slope_ * std::accumulate(moment.get(), moment.get() + blocks, 0.0);
  }

 private:
  // The distances are bounded by the box that holds the points, and so are the logits, between that and 0: where 2^logit
  // cannot underflow, no maximum is needed, and one exponential (or none) serves both sides of a pair.
  void choose_decay(const StudentLseCall& call) {
    scale_ = call.numbers.scale >= 0 ? call.numbers.scale : std::nan("");  // growing with the distance is no similarity
    const bool gaussian = std::isinf(call.freedom);
    slope_ = gaussian ? 1 : (call.freedom + 1) / call.freedom;
    const double inner = gaussian ? 0 : 2 * scale_ / call.freedom;
    outer_ = (gaussian ? -scale_ : -0.5 * (call.freedom + 1)) * log2e;
    s_.inner = T(inner);
    s_.inner_low = T(inner - s_.inner);
    s_.outer = T(outer_);
    s_.outer_low = T(outer_ - s_.outer);
    const double far = diameter2(), lowest = outer_ * (gaussian ? far : std::log1p(inner * far));
    s_.running = !(lowest >= (sizeof(T) == 8 ? -900 : -100));
    s_.decay = gaussian ? Decay::gaussian : call.freedom == 1 && !s_.running ? Decay::cauchy : Decay::student;
  }

  // The square of the box's diagonal.
  double diameter2() const {
    const Points<T>& p = s_.points;
    double sum = 0;
    for (int64_t k = 0; k < p.width; ++k) {
      T low = std::numeric_limits<T>::infinity(), high = -low;
      for (int64_t first = 0; first < p.rows; first += kernels_.panel) {
        const T* z = p.z + (first * p.width + k * kernels_.panel);
        for (int64_t i = 0; i < kernels_.panel && first + i < p.rows; ++i) {
          low = std::min(low, z[i]);
          high = std::max(high, z[i]);
        }
      }
      sum += (double(high) - low) * (double(high) - low);
    }
    return sum;
  }

  template <class Visit> void sweep(Visit visit) {
    const int64_t block = s_.block, padded = s_.points.padded;
    PairWalk walk = PairWalk::triangle(int((padded + block - 1) / block));
    walk.run(
        threads_, [&] { return allocate<T>(kernels_.scratch(block)); },
        [&](int i, int j, Buffer<T>& scratch) {
          visit(s_, i * block, std::min(padded, (i + 1) * block), j * block, std::min(padded, (j + 1) * block),
                scratch.get());
        });
  }

  const PointKernels<T>& kernels_;
  int threads_;
  double scale_, slope_, outer_;
  StudentLse<T> s_;
  Buffer<T> z_;
};

}  // namespace

void student_lse_forward(const StudentLseCall& call, void* neg, void* low) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    Job<T>(call).forward(static_cast<T*>(neg), static_cast<T*>(low));
  };
  call.numbers.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

double student_lse_backward(const StudentLseCall& call, const void* neg, const void* low, const void* dneg) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    return Job<T>(call).backward(static_cast<const T*>(neg), static_cast<const T*>(low), static_cast<const T*>(dneg));
  };
  return call.numbers.dtype == DType::f64 ? run(0.0) : run(0.0f);
}

}  // namespace ssl
