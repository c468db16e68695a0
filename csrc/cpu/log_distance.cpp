#include "log_distance.h"
#include "isa.h"
#include "row_pieces.h"
#include "streams.h"
#include "workspace.h"

namespace ssl {

void log_distance(const LogDistanceCall& call) {
  const Streams& kernels = *current_isa().streams;
  on_rows(call.threads, 0, call.rows, call.width,
          [&](int64_t begin, int64_t end) { kernels.norms(call, begin, end); });
  on_rows(call.threads, 0, call.count, 3 * call.width,
          [&](int64_t begin, int64_t end) { kernels.log_distance(call, begin, end); });
}

void log_distance_backward(LogDistanceBackwardCall call) {
  const LogDistanceCall& f = call.forward;
  // Every row of the gradient is summed up by one thread in one order, so who points at it has to be known.
  const auto starts = allocate_zero<int64_t>(f.rows + 2), from = allocate<int64_t>(f.count);
  int64_t* const next = starts.get() + 1;  // one ahead while rows are filled in, in place afterwards
  for (int64_t i = 0; i < f.count; ++i) ++next[f.index[i] + 1];
  for (int64_t k = 0; k < f.rows; ++k) next[k + 1] += next[k];
  for (int64_t i = 0; i < f.count; ++i) from[next[f.index[i]]++] = i;
  call.starts = starts.get();
  call.from = from.get();
  on_rows(f.threads, 0, f.rows, 4 * f.width,
          [&](int64_t begin, int64_t end) { current_isa().streams->log_distance_backward(call, begin, end); });
}

}  // namespace ssl
