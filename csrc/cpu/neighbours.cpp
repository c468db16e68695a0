#include "neighbours.h"
#include "points.h"

namespace ssl {
namespace {

// Up to this width products are formed in double: unit rows in few dimensions lie close together, their products differ
// in digits that a float does not have, and the sweep costs little there.
constexpr int64_t in_double = 16;

constexpr double worth_a_thread = 1 << 20;

template <class T> class Job {
 public:
  explicit Job(const NearestCall& call) : kernels_(current_isa().points->of<T>()), threads_(call.numbers.threads) {
    const Numbers& n = call.numbers;
    if (double(call.x.rows) * double(call.y.rows) * double(n.width) < worth_a_thread) threads_ = 1;
    s_ = {points(n, call.x, z_x_), points(n, call.y, z_y_), call.skip.has_value(), call.skip.value_or(0), nullptr};
  }

  void run(int64_t* index) {
    s_.index = index;
    for_ranges(threads_, s_.x.padded / kernels_.panel, [&](int64_t a, int64_t b) {
      for (int64_t k = a; k < b; ++k) kernels_.nearest(s_, k);
    });
  }

 private:
  Points<T> points(const Numbers& n, const Part& part, Buffer<T>& z) {
    const int64_t panels = (part.rows + kernels_.panel - 1) / kernels_.panel;
    z = allocate<T>(size_t(panels) * kernels_.panel * n.width);
    Points<T> p{&part, 1, n.dtype, n.normalize, part.rows, panels * kernels_.panel, n.width, z.get()};
    for_ranges(threads_, panels, [&](int64_t a, int64_t b) { kernels_.pack(p, a, b); });
    return p;
  }

  const PointKernels<T>& kernels_;
  int threads_;
  Buffer<T> z_x_, z_y_;
  Nearest<T> s_;
};

}  // namespace

void nearest(const NearestCall& call, int64_t* index) {
  if (call.numbers.dtype == DType::f64 || call.numbers.width <= in_double)
    Job<double>(call).run(index);
  else
    Job<float>(call).run(index);
}

}  // namespace ssl
