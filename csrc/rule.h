// Which entries of the matrix are no negatives.
#pragma once
#include <cstdint>
#include "portable.h"

namespace ssl {

// The entries that are no negatives: (column - row - offset) % period == 0. Of a set against itself these are the
// diagonal and the positives, of two sets the positives. In 64 bits on a CPU; on a GPU, where dividing these is a call, in 32.
template <class Int> struct RuleIn {
  Int period, offset;

  static constexpr Int far = Int(1) << (sizeof(Int) == 8 ? 60 : 29);  // further than any matrix reaches, and twice that fits
  SSL_SHARED static RuleIn same_sample(Int period) { return {period, 0}; }
  SSL_SHARED static RuleIn diagonal(Int offset) { return {2 * far, offset}; }
  SSL_SHARED static RuleIn none() { return {2 * far, far}; }

  // Is any such entry in rows [i0, i1) x columns [j0, j1)?
  SSL_SHARED bool touches(Int i0, Int i1, Int j0, Int j1) const {
    const Int lowest = j0 - i1 + 1 - offset, highest = j1 - 1 - i0 - offset;
    return highest - modulo(highest) >= lowest;
  }
  // The first such column of row i at or after j0.
  SSL_SHARED Int first(Int i, Int j0) const { return j0 + modulo(i + offset - j0); }
  SSL_SHARED Int modulo(Int d) const { return d % period < 0 ? d % period + period : d % period; }
};
using Rule = RuleIn<int64_t>;

}  // namespace ssl
