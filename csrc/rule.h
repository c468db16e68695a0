// Which entries of the matrix are no negatives.
#pragma once
#include <cstdint>
#include "portable.h"

namespace ssl {

// The entries that are no negatives: (column - row - offset) % period == 0. Of a set against itself these are the
// diagonal and the positives, of two sets the positives.
struct Rule {
  int64_t period, offset;

  static constexpr int64_t far = int64_t(1) << 60;  // further than any matrix reaches, and twice that fits an integer
  SSL_SHARED static Rule same_sample(int64_t period) { return {period, 0}; }
  SSL_SHARED static Rule diagonal(int64_t offset) { return {2 * far, offset}; }
  SSL_SHARED static Rule none() { return {2 * far, far}; }

  // Is any such entry in rows [i0, i1) x columns [j0, j1)?
  SSL_SHARED bool touches(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const int64_t lowest = j0 - i1 + 1 - offset, highest = j1 - 1 - i0 - offset;
    return highest - modulo(highest) >= lowest;
  }
  // The first such column of row i at or after j0.
  SSL_SHARED int64_t first(int64_t i, int64_t j0) const { return j0 + modulo(i + offset - j0); }
  SSL_SHARED int64_t modulo(int64_t d) const { return ((d % period) + period) % period; }
};

}  // namespace ssl
