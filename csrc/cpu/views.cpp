#include "views.h"
#include <algorithm>
#include <atomic>
#include "isa.h"
#include "parallel.h"
#include "streams.h"
#include "workspace.h"

namespace ssl {
namespace {

template <class T> void on_samples(const ViewsCall& call) {
  // the teacher's probabilities of one sample, their sum and a row of exponentials: a few rows that stay in the L2 cache
  const int64_t padded = (call.width + views_piece - 1) / views_piece * views_piece, pieces = padded / views_piece;
  constexpr int64_t worth_a_thread = 1 << 15;
  const int64_t work = call.batch * (call.students + call.teachers) * call.width;
  std::atomic<int64_t> next{0};
  on_threads(int(std::min<int64_t>({call.threads, call.batch, work / worth_a_thread + 1})), [&] {
    auto scratch = allocate<T>((call.teachers + 2) * (padded + pieces));
    for (int64_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < call.batch;)
      current_isa().streams->views(call, b, scratch.get(), padded);
  });
}

}  // namespace

void view_cross_entropy(const ViewsCall& call) {
  call.dtype == DType::f64 ? on_samples<double>(call) : on_samples<float>(call);
}

}  // namespace ssl
