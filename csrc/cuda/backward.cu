// The backward sweep. With dneg the gradient of neg and s the logits, a pair of negatives carries
//     G_ij = dneg_i exp(s_ij - top_i - neg_i) + dneg_j exp(s_ij - top_j - neg_j),
// the second term that of the columns (which are rows too in a set against itself), and row i receives sum_j G_ij y_j; what
// columns receive is the same sweep with the two sets exchanged. Positives join row by row in finish.
#include "tiles.h"
#include "weighing.h"

namespace ssl::cuda {
namespace {

template <class Cut> struct Gradient {
  using Real = typename Cut::O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN;
  static constexpr int VECTORS = 3;  // of a column: weight, top, neg
  const Backward& call;
  Place place;
  Shift<Real> shift;
  Real factor, unit_of_columns;
  Real row_factor[MT][2], weight[MT][2], top[MT][2], neg[MT][2];

  SSL_DEVICE Gradient(const Backward& call, Place place) : call(call), place(place) {
    const Matrix& m = call.matrix;
    const Real plain = logit_factor<Real>(m.scale, m.multiplier);
    shift = choose_shift(plain, m.normalize);
    factor = tile_factor(plain, shift.fixed);
    unit_of_columns = unit_of_largest<Real>(m);
    fill_row_factors(row_factor, m, place, factor);
    const Real* const weights = static_cast<const Real*>(call.x_weights);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = place.i(mt, 2 * h);
        weight[mt][h] = weights ? weights[i] : Real(0);
        top[mt][h] = weights && !shift.fixed ? weights[m.x.padded + i] : Real(0);
        neg[mt][h] = weights && !shift.fixed ? weights[2 * int64_t(m.x.padded) + i] : Real(0);
      }
  }

  SSL_DEVICE static ColumnVectors<Real> vectors(const Backward& call) {
    const Matrix& m = call.matrix;
    const bool fixed = choose_shift(logit_factor<Real>(m.scale, m.multiplier), m.normalize).fixed;
    return {static_cast<const Real*>(call.y_weights), m.y.padded, !call.y_weights ? 0 : fixed ? 1 : VECTORS};
  }

  template <int OUT, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, Entries<Real, MT, OUT>&, const Real* columns, int first, const Pairs& pairs) {
    const bool rows_too = call.x_weights, columns_too = call.y_weights, special = pairs.special();
    const float* const factors = call.matrix.y.factors;
#pragma unroll
    for (int n = 0; n < BN / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int j = place.in_tile(n, c);
        const Real w_j = columns_too ? columns[j] : Real(0);
        const Real f_j = factors ? Real(factors[first + j]) : Real(1);
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            Real& entry = s.at[mt][n][2 * h + c];
            if (shift.fixed) {
              entry = exp2_fast(entry * factor - shift.by) * (weight[mt][h] + w_j);
            } else {
              const Real t = rounded_product(entry, row_factor[mt][h] * f_j);
              Real g = 0;
              if (rows_too) g = weight[mt][h] * exp_fast(t - top[mt][h] - neg[mt][h]);
              if (columns_too) g += w_j * exp_fast(t - columns[BN + j] - columns[2 * BN + j]);
              entry = g * (f_j * unit_of_columns);
            }
            if (special && !(pairs.inside(place.i(mt, 2 * h), first + j) && pairs.negative(place.i(mt, 2 * h), first + j)))
              entry = 0;
          }
      }
  }
  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>&) const {}
  SSL_DEVICE void store() const {}
};

// The same, kept: float16, two columns at a time.
template <class Cut> struct KeptGradient : Gradient<Cut> {
  using Gradient<Cut>::MT, Gradient<Cut>::BN;
  const GradientEntries& call;

  SSL_DEVICE KeptGradient(const GradientEntries& call, Place place) : Gradient<Cut>(call, place), call(call) {}

  template <int OUT, class Pairs>
  SSL_DEVICE void weigh(Entries<float, MT, BN>& s, Entries<float, MT, OUT>& out, const float* columns, int first,
                        const Pairs& pairs) {
    Gradient<Cut>::weigh(s, out, columns, first, pairs);
    uint16_t* const entries = static_cast<uint16_t*>(call.entries);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int n = 0; n < BN / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          const int64_t row = this->place.i(mt, e) - call.first_row;
          *reinterpret_cast<uint32_t*>(entries + row * call.matrix.y.padded + first + this->place.in_tile(n, 0)) =
              pack_halves(s.at[mt][n][e], s.at[mt][n][e + 1]);
        }
  }
};

}  // namespace

int gradient_entries(const GradientEntries& call, void* stream) {
  if (call.matrix.arch == 90) return HopperEntries::launch<KeptGradient<HopperEntries>>(call, stream);
  return EntriesCut::launch<KeptGradient<EntriesCut>>(call, stream);
}

int backward(const Backward& call, void* stream) { return launch_sweep<Gradient>(call, stream); }

}  // namespace ssl::cuda
