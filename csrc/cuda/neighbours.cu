// The nearest row of another set by inner product: a running maximum and where it is, by spans of columns; then the best of the
// spans. Columns come in order and only a larger product replaces the best, so of equals the first counts.
#include "tiles.h"

namespace ssl::cuda {
namespace {

template <class Cut> struct Best {
  using O = typename Cut::O;
  using Real = typename O::Real;
  static constexpr int MT = Cut::MT, BN = Cut::BN, VECTORS = 1;  // of a column: factor
  static constexpr bool SHIFTS = false;
  bool fixed = false;
  const Nearest& call;
  Place place;
  Real product[MT][2];
  int index[MT][2];

  SSL_DEVICE Best(const Nearest& call, Place place) : call(call), place(place) {
    each_row<MT>([&](int mt, int h) { product[mt][h] = -Real(INFINITY), index[mt][h] = -1; });
  }
  SSL_DEVICE static ColumnVectors<Real> vectors(const Nearest& call) { return factors_of<Real>(call.matrix.y); }

  template <bool, class Pairs>
  SSL_DEVICE void weigh(Entries<Real, MT, BN>& s, const Real* columns, int first, const Pairs& pairs) {
    replace_others(s, place, first, pairs, -Real(INFINITY));
    s.each_column(place, [&](int j, auto&& each) {
      Real f_j[2];
      load_factors(f_j, call.matrix.y, columns, j);
      each([&](Real& entry, int mt, int h, int c) {
        const Real t = entry * f_j[c];  // a row's own factor changes no order
        if (t > product[mt][h]) product[mt][h] = t, index[mt][h] = first + j + c;
      });
    });
  }
  template <int OUT> SSL_DEVICE void finish(Entries<Real, MT, OUT>&) const {}

  SSL_DEVICE void store() {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Real best = product[mt][h];
        int where = index[mt][h];
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          const Real other = __shfl_xor_sync(0xffffffffu, best, step);
          const int there = __shfl_xor_sync(0xffffffffu, where, step);
          if (other > best || (other == best && there < where)) best = other, where = there;
        }
        if (place.lane % 4 == 0) {
          const int64_t at = int64_t(blockIdx.y) * call.matrix.x.padded + place.i(mt, 2 * h);
          static_cast<Real*>(call.products)[at] = best;
          call.indices[at] = where;
        }
      }
  }
};

template <class Real> __global__ void pick_nearest(const Nearest call) {
  const Matrix& m = call.matrix;
  const int i = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  if (i >= m.x.rows) return;
  Real best = -Real(INFINITY);
  // where no product is larger than -infinity: the first candidate, or the row itself where there is none
  int64_t where = i + m.step == 0 && m.y.rows > 1 ? 1 : 0;
  const int spans = (m.y.rows + call.span - 1) / call.span;
  for (int c = 0; c < spans; ++c) {
    const int64_t at = int64_t(c) * m.x.padded + i;
    const Real product = static_cast<const Real*>(call.products)[at];
    if (product > best) best = product, where = call.indices[at];
  }
  call.index[i] = where;
}

}  // namespace

int nearest(const Nearest& call, void* stream) {
  if (const int e = launch_sweep<Best, Result::none>(call, stream)) return e;
  const unsigned blocks = unsigned((call.matrix.x.rows + 127) / 128);
  const auto pick = call.matrix.operands == Operands::doubles ? pick_nearest<double> : pick_nearest<float>;
  return launch(pick, dim3(blocks), 128, 0, stream, call);
}

}  // namespace ssl::cuda
