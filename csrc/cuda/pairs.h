// Which entries of the matrix count, for the walk of a block along the columns: a rule, so that only the tiles on a diagonal or
// an edge ever look at a mask.
#pragma once
#include "api.h"
#include "device.h"
#include "rule.h"

namespace ssl::cuda {

// Follows the diagonals of entries that are no negatives past tiles [BM, BN] of one block of rows, each BN columns further
// on: one addition a tile where the rule would divide.
template <int BM, int BN> class Diagonals {
 public:
  SSL_DEVICE Diagonals(const Matrix& m, int first_row, int first_column)
      : rows(m.x.rows), columns(m.y.rows), step(m.step), self(m.self), first_row(first_row), first_column(first_column) {
    const auto rule = self ? RuleIn<int>::same_sample(step) : RuleIn<int>::diagonal(step);
    period = rule.period;
    past = rule.modulo(first_column + BN - 1 - first_row - rule.offset);
  }

  // Does the tile hold a positive, a diagonal or an edge of the matrix? Periods shorter than a tile are not followed.
  SSL_DEVICE bool special() const {
    return past < BM + BN - 1 || period < BM + BN - 1 || first_row + BM > rows || first_column + BN > columns;
  }
  SSL_DEVICE void next() {
    first_column += BN;
    past += BN;
    if (past >= period) past -= period;
  }
  SSL_DEVICE bool inside(int i, int j) const { return i < rows && j < columns; }
  // Is (i, j) a negative? What the rule says, in 32 bits.
  SSL_DEVICE bool negative(int i, int j) const { return self ? (j - i) % step != 0 : j - i != step; }

 private:
  int rows, columns, step;
  bool self;
  int first_row, first_column;
  int period;
  int past;  // how far the last diagonal lies below the tile's top right corner
};

}  // namespace ssl::cuda
