// Single rows of the operands that the sweeps see, back in their own units: positives are products of such rows.
#pragma once
#include "elements.h"
#include "logits.h"
#include "warps.h"

namespace ssl::cuda {

template <class Element, int PIECES> struct Rows {
  using Real = RealOf<Element>;
  const Element* units;
  const float* factors;
  int64_t low_offset;
  int width;

  SSL_DEVICE Rows(const Side& side, const Matrix& m)
      : units(static_cast<const Element*>(side.units)), factors(side.factors), low_offset(m.low_offset), width(m.width) {}

  // What entries of row i are multiplied with.
  SSL_DEVICE Real factor(int i) const { return (factors ? Real(factors[i]) : Real(1)) / Real(UNIT); }

  // Entries d .. d + 7, a multiple of eight, without that factor.
  SSL_DEVICE void load(Real (&x)[8], int i, int d) const {
    if constexpr (same_type<Element, double>) {
#pragma unroll
      for (int k = 0; k < 8; k += 2) {
        const double2 two = *reinterpret_cast<const double2*>(units + operand_index<double>(i, d + k, width));
        x[k] = two.x;
        x[k + 1] = two.y;
      }
    } else {
      const int64_t at = operand_index<half_t>(i, d, width);
      load_eight(x, units + at, 8, true);
      if constexpr (PIECES == 2) {
        Real low[8];
        load_eight(low, units + at + low_offset, 8, true);
#pragma unroll
        for (int k = 0; k < 8; ++k) x[k] += low[k];
      }
    }
  }
};

// Row i's positives: how many there may be, and of the k-th which column it is, whether it exists, and where pos keeps it.
struct Positive {
  int other;
  bool exists;
  int64_t at;
};
SSL_DEVICE int positives_of_a_row(const Matrix& m) { return m.self ? m.x.rows / m.step - 1 : 1; }
SSL_DEVICE Positive positive(const Matrix& m, int i, int k) {
  if (m.self) {
    const int64_t other = (i + (int64_t(k) + 1) * m.step) % m.x.rows;
    return {int(other), true, i + int64_t(k) * m.x.rows};
  }
  const int64_t other = int64_t(i) + m.step;
  return {int(other), other >= 0 && other < m.y.rows, other < i ? other : i};
}

// Calls f.operator()<Element, PIECES>() with what operand rows are made of.
template <class F> auto with_operands(Operands operands, F&& f) {
  switch (operands) {
    case Operands::doubles: return f.template operator()<double, 1>();
    case Operands::split: return f.template operator()<half_t, 2>();
    default: return f.template operator()<half_t, 1>();
  }
}

}  // namespace ssl::cuda
