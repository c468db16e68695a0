// From the parts of a sum to the results of a row: the logarithm of its negatives, its positives' logits, its mean.
#include "operand_rows.h"

namespace ssl::cuda {
namespace {

constexpr int WARPS = ROW_THREADS / 32;  // a row each: eight neighbours share the 32 bytes that a sum of theirs is read by

// `neg` from the groups' sums in their fixed order and `pos` from the operand rows, both less `top`. Positives are products of
// single rows: outside the sums nothing of theirs has to cancel against a tile's. Where columns weighted by their exponentials
// were received too, `mean` is their sum over that of the weights.
template <class Element, int PIECES>
__global__ void __launch_bounds__(ROW_THREADS) combine_rows(const Combine call) {
  using Real = RealOf<Element>;
  const Matrix& m = call.matrix;
  const int lane = int(threadIdx.x) % 32;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (row >= m.x.rows) return;
  const int i = int(row), padded = m.x.padded;
  const Real* const sums = static_cast<const Real*>(call.sums);
  const Real* const tops = static_cast<const Real*>(call.tops);
  const Real factor = logit_factor<Real>(m.scale, m.multiplier);
  // what was received has a shift of its own, and kept it
  const Shift<Real> shift = choose_shift(factor, m.normalize && !call.received);

  Real base = shift.fixed ? shift.by / Real(LOG2E) : Real(LOWEST);
  if (!shift.fixed) {
    for (int g = lane; g < call.groups; g += 32) base = larger(base, tops[int64_t(g) * padded + i]);
    base = largest_of_lanes(base, 32);
  }
  Real total = 0;
  for (int g = lane; g < call.groups; g += 32) {
    const int64_t at = int64_t(g) * padded + i;
    total += shift.fixed ? sums[at] : sums[at] * std::exp(tops[at] - base);
  }
  total = sum_of_lanes(total, 32);
  const Real log_total = std::log(total);

  Real* const pos = static_cast<Real*>(call.pos);
  const int positives = call.positives ? positives_of_a_row(m) : 0;
  Real highest = base + log_total;
  const Rows<Element, PIECES> x(m.x, m), y(m.y, m);
  for (int k = 0; k < positives; ++k) {
    const Positive p = positive(m, i, k);
    if (!p.exists) continue;
    Real dot = 0;
    for (int d = 8 * lane; d < m.width; d += 256) {
      Real a[8], b[8];
      x.load(a, i, d);
      y.load(b, p.other, d);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot += a[e] * b[e];
    }
    dot = sum_of_lanes(dot, 32) * (x.factor(i) * factor) * y.factor(p.other);
    if (lane == 0) pos[p.at] = dot;
    highest = larger(highest, dot);
  }
  // a row with neither negatives nor positives: -inf - -inf is not a number
  if (highest == -Real(INFINITY)) highest = 0;
  if (lane == 0) {
    static_cast<Real*>(call.top)[i] = highest;
    static_cast<Real*>(call.neg)[i] = base - highest + log_total;
    for (int k = 0; k < positives; ++k)
      if (const Positive p = positive(m, i, k); p.exists) pos[p.at] -= highest;
  }

  if (!call.received) return;
  const Real largest = m.y.largest ? Real(*m.y.largest) : Real(1);
  const Real unit = total == 0 ? Real(0) : 1 / Real(UNIT) / total * largest;
  for (int d = lane; d < call.entries; d += 32) {
    const Real* from = static_cast<const Real*>(call.received) + (row * m.width + d);
    Real whole = 0;
#pragma unroll 4
    for (int c = 0; c < call.groups; ++c)
      whole += from[int64_t(c) * padded * m.width] * std::exp(tops[int64_t(c) * padded + i] - base);
    static_cast<Real*>(call.mean)[row * call.entries + d] = whole * unit;
  }
}

}  // namespace

int combine(const Combine& call, void* stream) {
  const dim3 grid(unsigned((call.matrix.x.rows + WARPS - 1) / WARPS));
  return with_operands(call.matrix.operands, [&]<class Element, int PIECES>() {
    return launch(combine_rows<Element, PIECES>, grid, ROW_THREADS, 0, stream, call);
  });
}

}  // namespace ssl::cuda
