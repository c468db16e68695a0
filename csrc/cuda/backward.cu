// The backward sweep. With dneg the gradient of neg and s the logits, a pair of negatives carries
//     G_ij = dneg_i exp(s_ij - top_i - neg_i) + dneg_j exp(s_ij - top_j - neg_j),
// the second term that of the columns (which are rows too in a set against itself), and row i receives sum_j G_ij y_j; what
// columns receive is the same sweep with the two sets exchanged. Positives join row by row in finish.
#include "tiles.h"
#include "weighing.h"

namespace ssl::cuda {
namespace {

// PLAIN: G itself; otherwise times the columns' factors, so that it weighs their operand rows.
template <class Cut, bool PLAIN = false> struct Gradient {
  using Real = typename Cut::O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN;
  static constexpr bool SHIFTS = true;
  static constexpr int VECTORS = 4;  // of a column: weight, top, neg, factor
  const Backward& call;
  Place place;
  bool fixed;
  Real shift, factor, unit_of_columns;
  Real row_factor[MT][2], weight[MT][2], top[MT][2], neg[MT][2];

  SSL_DEVICE Gradient(const Backward& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    const Real plain = logit_factor<Real>(m.scale, m.multiplier);
    const Shift<Real> one = choose_shift(plain, m.normalize);
    fixed = one.fixed;
    shift = one.by;
    factor = tile_factor(plain, fixed);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
    const Real* const weights = static_cast<const Real*>(call.x_weights);
    each_row<MT>([&](int mt, int h) {
      const int i = place.i(mt, 2 * h);
      weight[mt][h] = weights ? weights[i] : Real(0);
      top[mt][h] = weights && !fixed ? weights[m.x.padded + i] : Real(0);
      neg[mt][h] = weights && !fixed ? weights[2 * int64_t(m.x.padded) + i] : Real(0);
    });
  }

  SSL_DEVICE static ColumnVectors<Real> vectors(const Backward& call) {
    const Matrix& m = call.matrix;
    const bool fixed = choose_shift(logit_factor<Real>(m.scale, m.multiplier), m.normalize).fixed;
    return {static_cast<const Real*>(call.y_weights), m.y.padded, fixed ? 1 : VECTORS};
  }

  template <bool FIXED, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, const Real* columns, int first, const Pairs& pairs) const {
    if constexpr (FIXED) {
      s.each_column(place, [&](int j, auto&& each) {
        Real w_j[2];
        load_two(w_j, columns + j);
        each([&](Real& entry, int mt, int h, int c) { entry = exp2_fast(entry * factor - shift) * (weight[mt][h] + w_j[c]); });
      });
    } else if (!call.of_columns) {
      terms<true, false>(s, columns);
    } else if (!call.x_weights) {
      terms<false, true>(s, columns);
    } else {
      terms<true, true>(s, columns);
    }
    replace_others(s, place, first, pairs, Real(0));
  }

  // Without a shift for all.
  template <bool ROWS, bool COLUMNS> SSL_DEVICE void terms(Entries<Real, MT, BN>& s, const Real* columns) const {
    s.each_column(place, [&](int j, auto&& each) {
      [[maybe_unused]] Real w_j[2], top_j[2], neg_j[2];
      Real f_j[2];
      load_two(f_j, columns + 3 * BN + j);
      if constexpr (COLUMNS) load_two(w_j, columns + j), load_two(top_j, columns + BN + j), load_two(neg_j, columns + 2 * BN + j);
      each([&](Real& entry, int mt, int h, int c) {
        const Real t = rounded_product(entry, row_factor[mt][h] * f_j[c]);
        Real g = 0;
        if constexpr (ROWS) g = weight[mt][h] * exp_less(t - top[mt][h], neg[mt][h]);
        if constexpr (COLUMNS) g += w_j[c] * exp_less(t - top_j[c], neg_j[c]);
        entry = PLAIN ? g : g * (f_j[c] * unit_of_columns);
      });
    });
  }
  template <int OUT> SSL_DEVICE void rescale(Entries<Real, MT, OUT>&) const {}
  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>&) const {}
  SSL_DEVICE void store() const {}
};

template <class Cut> using Received = Gradient<Cut>;

// The same, kept.
template <class Cut> struct KeptGradient : Gradient<Cut, true> {
  using Base = Gradient<Cut, true>;
  using Base::MT, Base::BN;
  const GradientEntries& call;

  SSL_DEVICE KeptGradient(const GradientEntries& call, Place place) : Base(call, place), call(call) {}

  template <bool FIXED, class Pairs>
  SSL_DEVICE void weigh(Entries<float, MT, BN>& s, const float* columns, int first, const Pairs& pairs) const {
    Base::template weigh<FIXED>(s, columns, first, pairs);
    keep_entries<typename Cut::O>(s, call, call.matrix.y.padded, this->place, first);
  }
};

}  // namespace

int gradient_entries(const GradientEntries& call, void* stream) {
  return launch_keeping<KeptGradient>(call, stream);
}

int backward(const Backward& call, void* stream) { return launch_sweep<Received, Result::whole>(call, stream); }

}  // namespace ssl::cuda
