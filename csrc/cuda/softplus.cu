// The sweep of a sum over pairs: the softplus of every logit, its sign turned for positives, and what its derivative sends to
// the rows. Nothing is normalised over a row or a column, so value and gradients come out of one sweep; what columns receive
// is the same sweep with the two sets exchanged, which leaves nothing to be added across blocks.
#include "inputs.h"
#include "tiles.h"
#include "weighing.h"

namespace ssl::cuda {
namespace {

// Where a row's lift begins: the smallest derivatives of float32 then come up to about one.
constexpr float HIGHEST_LIFT = 0x1p100f;

// VALUED: the sum itself is asked for, not only what rows receive.
template <class Cut, bool VALUED> struct Sum {
  using O = typename Cut::O;
  using Real = typename O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN, VECTORS = 1;  // of a column: factor
  static constexpr bool SHIFTS = false;
  const Softplus& call;
  Place place;
  bool fixed = false;
  Real factor, bias, unit_of_columns;
  Real value = 0, slope = 0, largest = 0;
  Real row_factor[MT][2], lift[MT][2];
  Real lowered[MT][2];  // by what the lift came down at the last tile

  SSL_DEVICE Sum(const Softplus& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    factor = tile_factor(logit_factor<Real>(m.scale, m.multiplier), false);
    bias = load_number<Real>(call.bias, 0);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
    each_row<MT>([&](int mt, int h) { lift[mt][h] = HIGHEST_LIFT, lowered[mt][h] = 1; });
  }
  SSL_DEVICE static ColumnVectors<Real> vectors(const Softplus& call) { return factors_of<Real>(call.matrix.y); }

  template <bool, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, const Real* columns, int first, const Pairs& pairs) {
    s.each_column(place, [&](int j, auto&& each) {
      Real f_j[2];
      load_factors(f_j, call.matrix.y, columns, j);
      each([&](Real& entry, int mt, int h, int c) { entry = entry * (row_factor[mt][h] * f_j[c]) + bias; });
    });
    if (pairs.special()) turn_positives<true>(s, first, pairs);
    shares(s);
    if (pairs.special()) turn_positives<false>(s, first, pairs);
    if constexpr (VALUED) s.each([&](Real& entry, int, int, int, int) { slope += entry; });
    if constexpr (VALUED && Cut::BD == 0) s.each([&](Real& entry, int, int, int, int) { largest = larger(largest, absolute(entry)); });
    if constexpr (Cut::BD > 0) {
      if (call.matrix.y.factors)
        s.each_column(place, [&](int j, auto&& each) {
          Real f_j[2];
          load_two(f_j, columns + j);
          each([&](Real& entry, int, int, int c) { entry *= f_j[c] * unit_of_columns; });
        });
      lift_rows(s);
    }
  }

  // The sign of positives; what lies OUTSIDE the matrix becomes as far from being a pair as can be.
  template <bool OUTSIDE, class Pairs> SSL_DEVICE void turn_positives(Entries<Real, MT, BN>& s, int first, const Pairs& pairs) const {
    const Marks<MT, BN> negatives(place, first, [&](int i, int j) { return pairs.negative(i, j); });
    s.each([&](Real& entry, int mt, int h, int n, int c) { entry = negatives.hold(mt, h, n, c) ? entry : -entry; });
    if constexpr (!OUTSIDE) return;
    const Marks<MT, BN> inside(place, first, [&](int i, int j) { return pairs.inside(i, j); });
    s.each([&](Real& entry, int mt, int h, int n, int c) { entry = inside.hold(mt, h, n, c) ? entry : -Real(INFINITY); });
  }

  // Of logits their sigmoids, the derivatives; and their softplus, added up.
  SSL_DEVICE void shares(Entries<Real, MT, BN>& s) {
    s.each([&](Real& entry, int, int, int, int) {
      const Real t = entry, e = exp_fast(-absolute(t)), over = reciprocal_fast(1 + e);
      if constexpr (VALUED) value += larger(t, Real(0)) + log1p_of_share(e);
      entry = t >= 0 ? over : e * over;
    });
  }

  // Derivatives of a trained model are tiny, and float16 holds their digits only if a row's are brought up to its range. The power
  // of two that does it comes down when a larger one turns up.
  SSL_DEVICE void lift_rows(Entries<Real, MT, BN>& s) {
    Real highest[MT][2];
    each_row<MT>([&](int mt, int h) { highest[mt][h] = 0; });
    s.each([&](Real& entry, int mt, int h, int, int) { highest[mt][h] = larger(highest[mt][h], absolute(entry)); });
    each_row<MT>([&](int mt, int h) {
      const Real found = largest_of_lanes(highest[mt][h], ROW_LANES);
      lowered[mt][h] = 1;
      if (found * lift[mt][h] > Real(LIFT)) {
        const Real lower = Real(LIFT / 2) / Real(power_of_two_below(float(found)));
        lowered[mt][h] = lower / lift[mt][h];
        lift[mt][h] = lower;
      }
    });
    s.each([&](Real& entry, int mt, int h, int, int) { entry *= lift[mt][h]; });
  }
  template <int OUT> SSL_DEVICE void rescale(Entries<Real, MT, OUT>& out) const { rescale_rows(out, lowered); }

  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>& out) const {
    out.each([&](Real& sum, int mt, int h, int, int) { sum *= 1 / lift[mt][h]; });
  }

  SSL_DEVICE void store() {
    if constexpr (VALUED) {
      if (blockIdx.z == 0) store_sums();
    }
  }
  // The block's part: lanes, then warps, in their order.
  SSL_DEVICE void store_sums() {
    value = sum_of_lanes(value, 32);
    slope = sum_of_lanes(slope, 32);
    largest = largest_of_lanes(largest, 32);
    Real* const by_warp = reinterpret_cast<Real*>(shared_memory());
    Cut::sync();
    if (place.lane == 0) {
      Real* const mine = by_warp + 3 * (threadIdx.x / 32);
      mine[0] = value, mine[1] = slope, mine[2] = largest;
    }
    Cut::sync();
    if (threadIdx.x > 0) return;
    Real sums[2] = {0, 0}, most = 0;
    for (int w = 0; w < Cut::WARPS; ++w) {
      for (int k = 0; k < 2; ++k) sums[k] += by_warp[3 * w + k];
      most = larger(most, by_warp[3 * w + 2]);
    }
    const int64_t at = int64_t(blockIdx.x) * gridDim.y + blockIdx.y;
    Real* const to = static_cast<Real*>(call.sums) + at;
    to[0] = sums[0];
    to[int64_t(gridDim.x) * gridDim.y] = sums[1];
    if (call.largest) static_cast<Real*>(call.largest)[at] = most;
  }
};

// The derivatives, kept. They have one unit, so that the same entries weigh columns and rows: the largest comes to a quarter of what
// float16 holds, and what is 2^-29 of it still has all its digits.
template <class Cut> struct KeptSum : Sum<Cut, false> {
  using Base = Sum<Cut, false>;
  using Base::MT, Base::BN;
  const SoftplusEntries& call;
  float lift;

  SSL_DEVICE KeptSum(const SoftplusEntries& call, Place place)
      : Base(call, place), call(call), lift(1 / *static_cast<const float*>(call.unit)) {}

  template <bool FIXED, class Pairs>
  SSL_DEVICE void weigh(Entries<float, MT, BN>& s, const float* columns, int first, const Pairs& pairs) {
    Base::template weigh<FIXED>(s, columns, first, pairs);
    s.each([&](float& entry, int, int, int, int) { entry *= lift; });
    keep_entries<typename Cut::O>(s, call, call.matrix.y.padded, this->place, first);
  }
};

template <class Cut> using WithValue = Sum<Cut, true>;
template <class Cut> using WithoutValue = Sum<Cut, false>;

}  // namespace

int softplus(const Softplus& call, void* stream) {
  if (!call.received) return launch_sweep<WithValue, Result::none>(call, stream);
  return call.sums ? launch_sweep<WithValue, Result::whole>(call, stream) : launch_sweep<WithoutValue, Result::whole>(call, stream);
}

int softplus_entries(const SoftplusEntries& call, void* stream) { return launch_keeping<KeptSum>(call, stream); }

}  // namespace ssl::cuda
