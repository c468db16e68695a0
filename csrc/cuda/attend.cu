// The forward sweep that keeps the gradient: row sums of exponentials, and the columns weighted by them. As flash attention
// with one set of columns for keys and values, whose diagonal of positives is left out. Columns are split into spans until
// the machine is full, and combine puts the spans together in their order.
#include "tiles.h"
#include "weighing.h"

namespace ssl::cuda {
namespace {

// A shift that serves every row leaves none of them out if the smallest possible exponential, 2^(LIFT_LOG2 - 2 bound), keeps
// the digits that are multiplied: 11 of float16 above 2^-14, 22 of two of them above 2^-3.
template <class O> constexpr float FIXED_LIMIT_OF = O::PIECES == 2 ? 9.0f : 14.5f;

template <class Cut> struct Attention {
  using O = typename Cut::O;
  using Real = typename O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN, VECTORS = 0;
  const Attend& call;
  Place place;
  bool fixed;
  Real shift, factor, unit_of_columns;
  Real row_factor[MT][2], top[MT][2], total[MT][2];

  SSL_DEVICE Attention(const Attend& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    const Real plain = logit_factor<Real>(m.scale, m.multiplier), bound = absolute(plain) * Real(LOG2E);
    fixed = bound <= FIXED_LIMIT_OF<O> && m.normalize;
    shift = bound - LIFT_LOG2;
    factor = tile_factor(plain, fixed);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[mt][h] = fixed ? shift / Real(LOG2E) : Real(LOWEST);
        total[mt][h] = 0;
      }
  }
  SSL_DEVICE static ColumnVectors<Real> vectors(const Attend&) { return {}; }

  template <int OUT, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, Entries<Real, MT, OUT>& out, const Real*, int first, const Pairs& pairs) {
    const bool special = pairs.special();
    const float* const factors = call.matrix.y.factors;
    const auto counts = [&](int i, int j) { return !special || (pairs.inside(i, j) && pairs.negative(i, j)); };
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = place.i(mt, 2 * h);
        if (fixed) {
#pragma unroll
          for (int n = 0; n < BN / 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              Real& entry = s.at[mt][n][2 * h + c];
              entry = counts(i, first + place.in_tile(n, c)) ? exp2_fast(entry * factor - shift) : Real(0);
              total[mt][h] += entry;
            }
          continue;
        }
        Real highest = Real(LOWEST);
#pragma unroll
        for (int n = 0; n < BN / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int j = first + place.in_tile(n, c);
            Real& entry = s.at[mt][n][2 * h + c];
            if (!counts(i, j)) entry = -Real(INFINITY);
            else entry *= factors ? row_factor[mt][h] * Real(factors[j]) : row_factor[mt][h];
            highest = larger(highest, entry);
          }
        highest = largest_of_lanes(highest, ROW_LANES);
        const Real above = larger(top[mt][h], highest - Real(LIFT_LOG2 / LOG2E)), keep = exp_fast(top[mt][h] - above);
        top[mt][h] = above;
        total[mt][h] *= keep;
        scale_row(out, mt, h, keep);
#pragma unroll
        for (int n = 0; n < BN / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            Real& entry = s.at[mt][n][2 * h + c];
            entry = exp_fast(entry - above);
            total[mt][h] += entry;
            if (factors) entry *= Real(factors[first + place.in_tile(n, c)]) * unit_of_columns;
          }
      }
  }
  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>&) const {}

  SSL_DEVICE void store() const {
    if (blockIdx.z > 0) return;
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Real sum = total[mt][h];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (place.lane % 4 == 0) {
          const int64_t at = int64_t(blockIdx.y) * call.matrix.x.padded + place.i(mt, 2 * h);
          static_cast<Real*>(call.sums)[at] = sum;
          static_cast<Real*>(call.tops)[at] = top[mt][h];
        }
      }
  }
};

}  // namespace

int attend(const Attend& call, void* stream) { return launch_sweep<Attention>(call, stream); }

}  // namespace ssl::cuda
