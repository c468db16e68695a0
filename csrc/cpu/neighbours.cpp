#include "neighbours.h"
#include <limits>
#include <mutex>
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
    const Part &x = call.x, &y = call.y;
    if (double(x.rows) * double(y.rows) * double(n.width) < worth_a_thread) threads_ = 1;
    const bool same = x.data == y.data && x.stride == y.stride && x.rows == y.rows;
    both_ = same && call.skip == 0 && x.rows < std::numeric_limits<int32_t>::max();
    s_.x = points(n, x, z_x_);
    s_.y = both_ ? s_.x : points(n, y, z_y_);
    s_.skips = call.skip.has_value();
    s_.skip = call.skip.value_or(0);
  }

  void run(int64_t* index) {
    s_.index = index;
    if (both_) return run_both();
    for_ranges(threads_, panels(s_.x), [&](int64_t a, int64_t b) {
      for (int64_t k = a; k < b; ++k) kernels_.nearest(s_, k);
    });
  }

 private:
  using Columns = BestOfColumns<T>;

  Points<T> points(const Numbers& n, const Part& part, Buffer<T>& z) {
    const int64_t panels = (part.rows + kernels_.panel - 1) / kernels_.panel;
    z = allocate<T>(size_t(panels) * kernels_.panel * n.width);
    Points<T> p{&part, 1, n.dtype, n.normalize, part.rows, panels * kernels_.panel, n.width, z.get()};
    for_ranges(threads_, panels, [&](int64_t a, int64_t b) { kernels_.pack(p, a, b); });
    return p;
  }
  int64_t panels(const Points<T>& p) const { return p.padded / kernels_.panel; }

  // Half of the matrix: what a row finds from its own panel on, and what it is to the rows of the panels before. Who
  // visits which panel changes nothing, since of equals the first in the order of rows is taken.
  void run_both() {
    const auto best = allocate<T>(s_.x.rows);
    s_.best = best.get();
    std::atomic<int64_t> next{0};
    std::mutex one_by_one;
    Mine all(s_.x.padded);
    on_threads(int(std::min<int64_t>(threads_, panels(s_.x))), [&] {
      Mine mine(s_.x.padded);
      for (int64_t k; (k = next.fetch_add(1)) < panels(s_.x);) kernels_.nearest_of_both(s_, k, mine.columns);
      const std::lock_guard<std::mutex> lock(one_by_one);
      for (int64_t i = 0; i < s_.x.rows; ++i) all.take(i, mine.columns.best[i], mine.columns.row[i]);
    });
    for (int64_t i = 0; i < s_.x.rows; ++i)
      if (all.columns.row[i] >= 0 && all.columns.best[i] >= best[i]) s_.index[i] = all.columns.row[i];
  }

  struct Mine {
    using Row = typename Columns::Row;
    Buffer<T> best;
    Buffer<Row> row;
    Columns columns;

    explicit Mine(int64_t padded) : best(allocate<T>(padded)), row(allocate<Row>(padded)), columns{best.get(), row.get()} {
      std::fill_n(columns.best, padded, -std::numeric_limits<T>::infinity());
      std::fill_n(columns.row, padded, Row(-1));
    }
    void take(int64_t i, T product, Row from) {
      if (from < 0 || product < best[i] || (product == best[i] && row[i] >= 0 && row[i] < from)) return;
      best[i] = product;
      row[i] = from;
    }
  };

  const PointKernels<T>& kernels_;
  int threads_;
  bool both_;  // x is y, and no row its own neighbour
  Buffer<T> z_x_, z_y_;
  Nearest<T> s_{};
};

}  // namespace

void nearest(const NearestCall& call, int64_t* index) {
  if (call.numbers.dtype == DType::f64 || call.numbers.width <= in_double)
    Job<double>(call).run(index);
  else
    Job<float>(call).run(index);
}

}  // namespace ssl
