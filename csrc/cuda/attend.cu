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
  static constexpr int MT = Cut::MT, BN = Cut::BN, VECTORS = 1;  // of a column: factor
  static constexpr bool SHIFTS = true;
  const Attend& call;
  Place place;
  bool fixed;
  Real shift, factor, unit_of_columns;
  Real row_factor[MT][2], top[MT][2], total[MT][2];
  Real keep[MT][2];  // by what a rising maximum shrinks what is summed so far

  SSL_DEVICE Attention(const Attend& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    const Real plain = logit_factor<Real>(m.scale, m.multiplier), bound = absolute(plain) * Real(LOG2E);
    fixed = bound <= FIXED_LIMIT_OF<O> && m.normalize;
    shift = bound - LIFT_LOG2;
    factor = tile_factor(plain, fixed);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
    each_row<MT>([&](int mt, int h) {
      top[mt][h] = fixed ? shift / Real(LOG2E) : Real(LOWEST);
      total[mt][h] = 0;
      keep[mt][h] = 1;
    });
  }
  SSL_DEVICE static ColumnVectors<Real> vectors(const Attend& call) { return factors_of<Real>(call.matrix.y); }

  template <bool FIXED, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, const Real* columns, int first, const Pairs& pairs) {
    if constexpr (FIXED) {
      s.each([&](Real& entry, int, int, int, int) { entry = exp2_fast(entry * factor - shift); });
      replace_others(s, place, first, pairs, Real(0));
      s.each([&](Real& entry, int mt, int h, int, int) { total[mt][h] += entry; });
    } else {
      s.each_column(place, [&](int j, auto&& each) {
        Real f_j[2];
        load_factors(f_j, call.matrix.y, columns, j);
        each([&](Real& entry, int mt, int h, int c) { entry *= row_factor[mt][h] * f_j[c]; });
      });
      replace_others(s, place, first, pairs, -Real(INFINITY));
      Real highest[MT][2];
      each_row<MT>([&](int mt, int h) { highest[mt][h] = Real(LOWEST); });
      s.each([&](Real& entry, int mt, int h, int, int) { highest[mt][h] = larger(highest[mt][h], entry); });
      each_row<MT>([&](int mt, int h) {
        const Real found = largest_of_lanes(highest[mt][h], ROW_LANES);
        const Real above = larger(top[mt][h], found - Real(LIFT_LOG2 / LOG2E));
        keep[mt][h] = exp_fast(top[mt][h] - above);
        top[mt][h] = above;
        total[mt][h] *= keep[mt][h];
      });
      s.each([&](Real& entry, int mt, int h, int, int) {
        entry = exp_fast(entry - top[mt][h]);
        total[mt][h] += entry;
      });
      if (!call.matrix.y.factors) return;
      s.each_column(place, [&](int j, auto&& each) {
        Real f_j[2];
        load_two(f_j, columns + j);
        each([&](Real& entry, int, int, int c) { entry *= f_j[c] * unit_of_columns; });
      });
    }
  }
  template <int OUT> SSL_DEVICE void rescale(Entries<Real, MT, OUT>& out) const {
    if (!fixed) rescale_rows(out, keep);
  }
  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>&) const {}

  SSL_DEVICE void store() const {
    if (blockIdx.z > 0) return;
    each_row<MT>([&](int mt, int h) {
      const Real sum = sum_of_lanes(total[mt][h], ROW_LANES);
      if (place.lane % ROW_LANES > 0) return;
      const int64_t at = int64_t(blockIdx.y) * call.matrix.x.padded + place.i(mt, 2 * h);
      static_cast<Real*>(call.sums)[at] = sum;
      static_cast<Real*>(call.tops)[at] = top[mt][h];
    });
  }
};

}  // namespace

int attend(const Attend& call, void* stream) { return launch_sweep<Attention, Result::cut>(call, stream); }

}  // namespace ssl::cuda
