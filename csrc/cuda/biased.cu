// Log-sum-exp of a matrix along either dimension, with a bias along it: a block a row, or a block for 32 columns. Every logit is
// read once; logits are in base 2.
#include "logits.h"
#include "numbers.h"
#include "warps.h"

namespace ssl::cuda {
namespace {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int AT_ONCE = 8;  // logits of a thread whose loads are under way together

// A running maximum and the sum of exponentials relative to it.
template <class Real> struct RunningSum {
  Real top = -Real(INFINITY), sum = 0;

  SSL_DEVICE void add(Real more_top, Real more) {
    const Real higher = larger(top, more_top);
    // where every logit is -inf there is nothing to be relative to
    const Real least = higher == -Real(INFINITY) ? Real(0) : higher;
    sum = sum * exp2_fast(top - least) + more * exp2_fast(more_top - least);
    top = higher;
  }
  SSL_DEVICE void add(const Real (&s)[AT_ONCE]) {
    Real higher = top, more = 0;  // NaN is no maximum, but its exponential is none either
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) higher = larger(higher, s[k]);
    const Real least = higher == -Real(INFINITY) ? Real(0) : higher;
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) more += exp2_fast(s[k] - least);
    sum = sum * exp2_fast(top - least) + more;
    top = higher;
  }
  SSL_DEVICE Real result() const { return (top + Real(log2(double(sum)))) / Real(LOG2E); }
};

// The first `count` of AT_ONCE logits, `step` apart in memory; the bias goes along with them.
template <class Real>
SSL_DEVICE void load_logits(Real (&s)[AT_ONCE], const BiasedLse& call, int64_t at, int64_t step, int count, int64_t bias, int bias_step) {
  load_share(s, call.logits, call.dtype, at, step, count, -Real(INFINITY));
#pragma unroll
  for (int k = 0; k < AT_ONCE; ++k) {
    s[k] = k < count ? s[k] * Real(call.multiplier * LOG2E) : -Real(INFINITY);
    if (call.bias && k < count) s[k] += static_cast<const Real*>(call.bias)[bias + k * bias_step] * Real(LOG2E);
  }
}

template <class Real> __global__ void __launch_bounds__(THREADS) lse_of_rows(const BiasedLse call) {
  const int64_t row = blockIdx.x;
  RunningSum<Real> mine;
  for (int column = int(threadIdx.x); column < call.width; column += AT_ONCE * THREADS) {
    Real s[AT_ONCE];
    load_logits(s, call, row * call.stride + column, THREADS, (call.width - column + THREADS - 1) / THREADS, column, THREADS);
    mine.add(s);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    mine.add(__shfl_xor_sync(ALL_LANES, mine.top, step), __shfl_xor_sync(ALL_LANES, mine.sum, step));
  Real* const of_warps = reinterpret_cast<Real*>(shared_memory());
  if (threadIdx.x % 32 == 0) {
    of_warps[2 * (threadIdx.x / 32)] = mine.top;
    of_warps[2 * (threadIdx.x / 32) + 1] = mine.sum;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  RunningSum<Real> all;
  for (int w = 0; w < WARPS; ++w) all.add(of_warps[2 * w], of_warps[2 * w + 1]);
  static_cast<Real*>(call.out)[row] = all.result();
}

template <class Real> __global__ void __launch_bounds__(THREADS) lse_of_columns(const BiasedLse call) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, column = int(blockIdx.x) * 32 + lane;
  RunningSum<Real> mine;
  if (column < call.width)
    for (int64_t row = warp; row < call.rows; row += AT_ONCE * WARPS) {
      Real s[AT_ONCE];
      const int64_t left = (call.rows - row + WARPS - 1) / WARPS;
      load_logits(s, call, row * call.stride + column, WARPS * call.stride, left < AT_ONCE ? int(left) : AT_ONCE, row, WARPS);
      mine.add(s);
    }
  Real* const of_warps = reinterpret_cast<Real*>(shared_memory());  // [WARPS][2][32]
  of_warps[warp * 64 + lane] = mine.top;
  of_warps[warp * 64 + 32 + lane] = mine.sum;
  __syncthreads();
  if (warp > 0 || column >= call.width) return;
  RunningSum<Real> all;
  for (int w = 0; w < WARPS; ++w) all.add(of_warps[w * 64 + lane], of_warps[w * 64 + 32 + lane]);
  static_cast<Real*>(call.out)[column] = all.result();
}

}  // namespace

int biased_lse(const BiasedLse& call, void* stream) {
  auto start = [&]<class Real>() {
    const size_t shared = WARPS * 2 * 32 * sizeof(Real);
    if (call.of_rows) return launch(lse_of_rows<Real>, dim3(unsigned(call.rows)), THREADS, shared, stream, call);
    return launch(lse_of_columns<Real>, dim3(unsigned((call.width + 31) / 32)), THREADS, shared, stream, call);
  };
  return call.dtype == DType::f64 ? start.template operator()<double>() : start.template operator()<float>();
}

}  // namespace ssl::cuda
