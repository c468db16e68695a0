// What all kernels must agree on: how products become logits, and under which shift their exponentials are summed.
#pragma once
#include "api.h"
#include "operands.h"

namespace ssl::cuda {

constexpr double LOG2E = 1.4426950408889634;

// Logits in base 2 within +-80 are summed under one constant shift: 2^(t - shift) then lies in 2^-100 .. 2^60, its sum over
// 2^60 rows still in float32, and so do the backward's factors 2^(shift - neg). That is |scale| <= 55, every temperature
// from 0.0181 up. Beyond it rows keep a running maximum, and logits are in nats, so that a multiply-add takes the row's
// maximum from the product itself and nothing as large as a logit is ever rounded.
constexpr float FIXED_LIMIT = 80.0f, HEADROOM = 60.0f;

// Where a running maximum starts: finite, so that a tile without a single counted entry does not make inf - inf.
constexpr float LOWEST = -3.0e38f;

// Weights multiply rows as float16, so they are brought to at most 2^15: those down to 2^-39 of the largest still count.
constexpr float LIFT = 32768.0f, LIFT_LOG2 = 15.0f;

template <class Real> SSL_DEVICE Real load_number(Number number, Real otherwise) {
  if (!number.at) return otherwise;
  switch (number.dtype) {
    case DType::f64: return Real(*static_cast<const double*>(number.at));
    case DType::bf16: return Real(__bfloat162float(*static_cast<const bfloat_t*>(number.at)));
    case DType::f16: return Real(__half2float(*static_cast<const half_t*>(number.at)));
    default: return Real(*static_cast<const float*>(number.at));
  }
}

// multiplier * scale, read on the device.
template <class Real> SSL_DEVICE Real logit_factor(Number scale, double multiplier) {
  return Real(multiplier) * load_number<Real>(scale, 1);
}

SSL_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
SSL_DEVICE float absolute(float x) { return fabsf(x); }
SSL_DEVICE double absolute(double x) { return fabs(x); }

// Whether one shift serves every row, and which, in base 2. Rows off the sphere have no bound. A factor that is NaN is not
// within any: everything after it is NaN then.
template <class Real> struct Shift {
  bool fixed;
  Real by;
};
template <class Real> SSL_DEVICE Shift<Real> choose_shift(Real factor, bool normalize) {
  const Real bound = absolute(factor) * Real(LOG2E);
  return {bound <= FIXED_LIMIT && normalize, bound > HEADROOM ? bound - HEADROOM : Real(0)};
}

// What turns products of operand rows into logits: base 2 under a fixed shift, nats otherwise.
template <class Real> SSL_DEVICE Real tile_factor(Real factor, bool fixed) {
  return (fixed ? factor * Real(LOG2E) : factor) / (Real(UNIT) * Real(UNIT));
}

SSL_DEVICE float exp_fast(float x) { return exp2_fast(x * float(LOG2E)); }
SSL_DEVICE double exp_fast(double x) { return exp(x); }
// exp(x - less / EXPONENT): `less` comes in the exponential's own units, so that a multiply-add brings x there.
template <class Real> constexpr double EXPONENT = 1;
template <> constexpr double EXPONENT<float> = LOG2E;
SSL_DEVICE float exp_less(float x, float less) { return exp2_fast(__fmaf_rn(x, float(LOG2E), -less)); }
SSL_DEVICE double exp_less(double x, double less) { return exp(x - less); }
// A logit that is rounded before anything is taken from it, as the forward sweep summed it: the rounding of a row's largest
// then cancels against that of its sum, where a multiply-add would leave it in every weight.
SSL_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
SSL_DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }
SSL_DEVICE float log1p_of(float x) { return log1pf(x); }
SSL_DEVICE double log1p_of(double x) { return log1p(x); }
// The same of 0 <= x <= 1, to two units in the last place: x + x^2 times a polynomial that is nearest by relative error. The
// library's, which serves every x, is four times as long and branches.
SSL_DEVICE float log1p_of_share(float x) {
  float p = -0.003243980696424842f;
  p = __fmaf_rn(p, x, 0.019851261749863625f);
  p = __fmaf_rn(p, x, -0.056959159672260284f);
  p = __fmaf_rn(p, x, 0.10603616386651993f);
  p = __fmaf_rn(p, x, -0.15305569767951965f);
  p = __fmaf_rn(p, x, 0.19675931334495544f);
  p = __fmaf_rn(p, x, -0.24954132735729218f);
  p = __fmaf_rn(p, x, 0.3332996368408203f);
  p = __fmaf_rn(p, x, -0.4999990165233612f);
  return __fmaf_rn(p * x, x, x);
}
SSL_DEVICE double log1p_of_share(double x) { return log1p(x); }
SSL_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
SSL_DEVICE double larger(double a, double b) { return fmax(a, b); }

}  // namespace ssl::cuda
