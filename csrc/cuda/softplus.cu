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

template <class Cut> struct Sum {
  using O = typename Cut::O;
  using Real = typename O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN, VECTORS = 0;
  const Softplus& call;
  Place place;
  Real factor, bias, unit_of_columns;
  Real value = 0, slope = 0;
  Real row_factor[MT][2], lift[MT][2];

  SSL_DEVICE Sum(const Softplus& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    factor = tile_factor(logit_factor<Real>(m.scale, m.multiplier), false);
    bias = load_number<Real>(call.bias, 0);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) lift[mt][h] = HIGHEST_LIFT;
  }
  SSL_DEVICE static ColumnVectors<Real> vectors(const Softplus&) { return {}; }

  template <int OUT, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, Entries<Real, MT, OUT>& out, const Real*, int first, const Pairs& pairs) {
    const bool special = pairs.special();
    const float* const factors = call.matrix.y.factors;
#pragma unroll
    for (int n = 0; n < BN / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int j = first + place.in_tile(n, c);
        const Real f_j = factors ? Real(factors[j]) : Real(1);
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int i = place.i(mt, 2 * h);
            Real& entry = s.at[mt][n][2 * h + c];
            const bool positive = special && !pairs.negative(i, j), outside = special && !pairs.inside(i, j);
            Real t = entry * (row_factor[mt][h] * f_j) + bias;
            if (positive) t = -t;
            const Real e = exp_fast(-absolute(t)), share = (t >= 0 ? Real(1) : e) / (1 + e);
            // NaN stays NaN: the maximum of CUDA would lose it
            Real g = positive ? -share : share, added = (t < 0 ? Real(0) : t) + log1p_of(e);
            if (outside) g = added = 0;
            value += added;
            slope += g;
            entry = g * (f_j * unit_of_columns);
          }
      }
    if constexpr (Cut::BD > 0) lift_rows(s, out);
  }

  // Derivatives of a trained model are tiny, and float16 holds their digits only if a row's are brought up to its range. The power
  // of two that does it comes down when a larger one turns up, and takes along what is summed already.
  template <int OUT> SSL_DEVICE void lift_rows(Entries<Real, MT, BN>& s, Entries<Real, MT, OUT>& out) {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Real highest = 0;
#pragma unroll
        for (int n = 0; n < BN / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) highest = larger(highest, absolute(s.at[mt][n][2 * h + c]));
        highest = largest_of_lanes(highest, ROW_LANES);
        if (highest * lift[mt][h] > Real(LIFT)) {
          const Real lower = Real(LIFT / 2) / Real(power_of_two_below(float(highest)));
          scale_row(out, mt, h, lower / lift[mt][h]);
          lift[mt][h] = lower;
        }
#pragma unroll
        for (int n = 0; n < BN / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) s.at[mt][n][2 * h + c] *= lift[mt][h];
      }
  }

  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>& out) const {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int n = 0; n < OUT / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) out.at[mt][n][e] *= 1 / lift[mt][e / 2];
  }

  // The block's part: lanes, then warps, in their order.
  SSL_DEVICE void store() {
    if (!call.sums || blockIdx.z > 0) return;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      value += __shfl_xor_sync(0xffffffffu, value, step);
      slope += __shfl_xor_sync(0xffffffffu, slope, step);
    }
    Real* const by_warp = reinterpret_cast<Real*>(shared_memory());
    Cut::sync();
    if (place.lane == 0) {
      by_warp[2 * (threadIdx.x / 32)] = value;
      by_warp[2 * (threadIdx.x / 32) + 1] = slope;
    }
    Cut::sync();
    if (threadIdx.x > 0) return;
    Real sums[2] = {0, 0};
    for (int w = 0; w < Cut::WARPS; ++w)
      for (int k = 0; k < 2; ++k) sums[k] += by_warp[2 * w + k];
    Real* const to = static_cast<Real*>(call.sums) + int64_t(blockIdx.x) * gridDim.y + blockIdx.y;
    to[0] = sums[0];
    to[int64_t(gridDim.x) * gridDim.y] = sums[1];
  }
};

}  // namespace

int softplus(const Softplus& call, void* stream) {
  return call.received ? launch_sweep<Sum>(call, stream) : launch_sweep<Sum, false>(call, stream);
}

}  // namespace ssl::cuda
