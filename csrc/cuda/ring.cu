// A queue of rows in a ring: normalised, written, and the pointer advanced, in one launch.
#include "api.h"
#include "arrivals.h"
#include "elements.h"
#include "warps.h"

namespace ssl::cuda {
namespace {

template <class To, class From> __global__ void __launch_bounds__(ROW_THREADS) enqueue_rows(const Enqueue call, int lanes) {
  using Real = typename Choose<From, double, RealOf<To>>::type;
  const int64_t row = (int64_t(blockIdx.x) * ROW_THREADS + threadIdx.x) / lanes, width = call.width;
  const int lane = int(threadIdx.x) % lanes;
  const int64_t pointer = read_before_arrival(call.pointer), slot = pointer + row;
  const bool stays = row < call.count && (call.wrap ? row >= call.count - call.size : slot < call.size);
  const From* const from = static_cast<const From*>(call.rows) + row * call.rows_stride;
  To* const to = static_cast<To*>(call.queue) + slot % call.size * call.queue_stride;
  const bool from_vector = aligned(static_cast<const From*>(call.rows), call.rows_stride);
  const bool to_vector = aligned(static_cast<const To*>(call.queue), call.queue_stride);

  Real by = 1;
  if (call.normalize) {
    Real squares = 0;
    if (stays)
      for (int64_t d = 8 * lane; d < width; d += 8 * lanes) {
        Real x[8];
        load_eight(x, from + d, up_to_eight(width - d), from_vector);
#pragma unroll
        for (int k = 0; k < 8; ++k) squares += x[k] * x[k];
      }
    const Real norm = std::sqrt(sum_of_lanes(squares, lanes));
    by = norm < Real(1e-12) ? Real(1e-12) : norm;
  }
  if (stays)
    for (int64_t d = 8 * lane; d < width; d += 8 * lanes) {
      const int count = up_to_eight(width - d);
      Real x[8];
      load_eight(x, from + d, count, from_vector);
#pragma unroll
      for (int k = 0; k < 8; ++k) x[k] /= by;
      store_eight(to + d, x, count, to_vector);
    }

  const int64_t end = pointer + call.count;
  arrive_and_replace(call.pointer, call.wrap ? end % call.size : end < call.size ? end : 0);
}

}  // namespace

int enqueue(const Enqueue& call, void* stream) {
  const int lanes = lanes_of_row(call.width), rows = ROW_THREADS / lanes;
  const dim3 grid(unsigned((call.count + rows - 1) / rows));
  return with_elements(call.queue_dtype, [&]<class To>() {
    return with_elements(call.rows_dtype, [&]<class From>() {
      return launch(enqueue_rows<To, From>, grid, ROW_THREADS, 0, stream, call, lanes);
    });
  });
}

}  // namespace ssl::cuda
