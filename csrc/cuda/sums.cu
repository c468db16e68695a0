// The blocks' parts of a number, added up by one block in one order.
#include "elements.h"
#include "logits.h"
#include "warps.h"

namespace ssl::cuda {
namespace {

constexpr int THREADS = 1024;

template <class Sum, class Real> SSL_DEVICE Sum added(const void* parts, int count) {
  Sum* const room = reinterpret_cast<Sum*>(shared_memory());
  Sum total = 0;
  for (int k = int(threadIdx.x); k < count; k += THREADS) total += Sum(static_cast<const Real*>(parts)[k]);
  __syncthreads();  // the sum before may still be read
  return sum_of_block(total, room);
}

template <class Real, class Scale> __global__ void __launch_bounds__(THREADS) sum_of_scale(const SumScale call) {
  const Real total = added<Real, Real>(call.along, call.count);
  if (threadIdx.x == 0) *static_cast<Scale*>(call.dscale) = narrowed<Scale>(total * Real(call.multiplier));
}

template <class Real> __global__ void __launch_bounds__(THREADS) sum_of_pairs(const AddUp call) {
  const double value = added<double, Real>(call.sums, call.count);
  double bias = 0, scale = 0;
  if (call.along) {
    bias = added<double, Real>(static_cast<const Real*>(call.sums) + call.count, call.count);
    scale = added<double, Real>(call.along, call.along_count) * call.multiplier;
  }
  if (threadIdx.x == 0) {
    *static_cast<Real*>(call.value) = Real(value);
    *static_cast<Real*>(call.dbias) = Real(bias);
    *static_cast<Real*>(call.dscale) = Real(scale);
  }
}

}  // namespace

int sum_scale(const SumScale& call, void* stream) {
  return with_elements(call.dtype, [&]<class Scale>() {
    const size_t room = THREADS / 32 * sizeof(double);
    return call.doubles ? launch(sum_of_scale<double, Scale>, 1, THREADS, room, stream, call)
                        : launch(sum_of_scale<float, Scale>, 1, THREADS, room, stream, call);
  });
}

int add_up(const AddUp& call, void* stream) {
  const size_t room = THREADS / 32 * sizeof(double);
  return call.doubles ? launch(sum_of_pairs<double>, 1, THREADS, room, stream, call)
                      : launch(sum_of_pairs<float>, 1, THREADS, room, stream, call);
}

}  // namespace ssl::cuda
