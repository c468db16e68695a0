// What rows and columns put into G, the matrix of weights that the backward sweep multiplies rows with.
#include "logits.h"
#include "inputs.h"

namespace ssl::cuda {
namespace {

constexpr int THREADS = 1024, ROWS = 4096;  // of a block

template <class Real> SSL_DEVICE Real largest_of(const WeighSide& side) {
  const Real* const dneg = static_cast<const Real*>(side.dneg);
  Real top = 0;
  for (int j = int(threadIdx.x); j < side.rows; j += THREADS) top = larger(top, absolute(dneg[j]));
  return top;
}

// By kind of shift: dneg exp(shift - top - neg), or dneg, top, neg in the units of exp_less, and the factor. Every block finds the largest |dneg| by itself: so many
// numbers from the cache, cheaper than one more launch.
template <class Real> __global__ void __launch_bounds__(THREADS) weigh_rows(const Weigh call) {
  const WeighSide side = call.sides[blockIdx.y];
  Real largest = largest_of<Real>(call.sides[0]);
  if (call.sides[1].neg) largest = larger(largest, largest_of<Real>(call.sides[1]));
  largest = largest_of_block(largest, reinterpret_cast<Real*>(shared_memory()));
  // G is brought to at most LIFT, two terms of half of it, by one power of two for the whole matrix. 2^-100 keeps the power
  // finite; smaller gradients than that flush to zero
  Real power = Real(power_of_two_below(fmaxf(float(largest), 7.9e-31f)));
  power = largest > 0 ? power * Real(4 / LIFT) : Real(1);

  const Shift<Real> shift = choose_shift(logit_factor<Real>(call.scale, call.multiplier), call.normalize);
  Real* const weights = static_cast<Real*>(side.weights);
  const int first = int(blockIdx.x) * ROWS, last = smaller(first + ROWS, side.padded);
  for (int i = first + int(threadIdx.x); i < last; i += THREADS) {
    const bool inside = i < side.rows;
    Real neg = inside ? static_cast<const Real*>(side.neg)[i] : Real(0);
    const Real top = inside ? static_cast<const Real*>(side.top)[i] : Real(0);
    Real dneg = inside ? static_cast<const Real*>(side.dneg)[i] / power : Real(0);
    if (neg == -Real(INFINITY)) neg = dneg = 0;  // a row without negatives has nobody to send a gradient to
    if (shift.fixed) {
      // in float64: the fast exponential of float32 would lose five bits of it, and this is one number a row
      weights[i] = dneg * Real(std::exp(double(shift.by / Real(LOG2E) - top) - double(neg)));
    } else {
      weights[i] = dneg;
      weights[side.padded + i] = top;
      weights[2 * int64_t(side.padded) + i] = neg * Real(EXPONENT<Real>);
      weights[3 * int64_t(side.padded) + i] = side.factors ? Real(side.factors[i]) : Real(1);
    }
  }
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *static_cast<Real*>(call.unit) = power;
}

template <class Real> int launch_weigh(const Weigh& call, void* stream) {
  const int padded = call.sides[1].neg ? max(call.sides[0].padded, call.sides[1].padded) : call.sides[0].padded;
  const dim3 grid(unsigned((padded + ROWS - 1) / ROWS), call.sides[1].neg ? 2 : 1);
  return launch(weigh_rows<Real>, grid, THREADS, THREADS / 32 * sizeof(Real), stream, call);
}

}  // namespace

int weigh(const Weigh& call, void* stream) {
  return call.doubles ? launch_weigh<double>(call, stream) : launch_weigh<float>(call, stream);
}

}  // namespace ssl::cuda
