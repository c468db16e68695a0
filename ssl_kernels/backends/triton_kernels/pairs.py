"""Which entries of the matrix count: rules, so that only the tiles on a diagonal or an edge ever look at a mask.

* ``SELF``, a set against itself: rows a multiple of ``step`` apart are of one sample, row ``i``'s positives are its
  twins, the diagonal counts for nothing.
* Otherwise two sets: row ``i``'s positive is the column ``i + step``. ``step`` is negative where the two have changed
  places, and leads past the end (by the number of columns) where there are no positives.

All entries that are neither are negatives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_distance(first_row, first_column, rows, step, BLOCK_N: tl.constexpr, SELF: tl.constexpr):
    """How far the (last) diagonal of positives lies below a tile's top right corner."""
    distance = first_column + BLOCK_N - 1 - first_row
    if SELF:
        return (distance + rows) % step
    else:
        return distance - step


@triton.jit
def next_distance(distance, step, BLOCK_N: tl.constexpr, SELF: tl.constexpr):
    """The same for the next tile to the right; steps shorter than a tile are not followed (see is_special)."""
    distance += BLOCK_N
    if SELF:
        distance = tl.where(distance >= step, distance - step, distance)
    return distance


@triton.jit
def is_special(
    distance, first_row, first_column, rows, columns, step,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SELF: tl.constexpr,
):  # fmt: skip
    """Whether a tile holds a positive or an edge of the matrix: only then does it pay for a mask."""
    special = (distance >= 0) & (distance < BLOCK_M + BLOCK_N - 1)
    special = special | (first_row + BLOCK_M > rows) | (first_column + BLOCK_N > columns)
    if SELF:
        special = special | (step < BLOCK_M + BLOCK_N - 1)
    return special


@triton.jit
def inside(i, j, rows, columns):
    return (i < rows)[:, None] & (j < columns)[None, :]


@triton.jit
def negatives(i, j, rows, columns, step, SELF: tl.constexpr):
    """The mask of the pairs that count as negatives, inside the matrix."""
    if SELF:
        return ((i % step)[:, None] != (j % step)[None, :]) & inside(i, j, rows, columns)
    else:
        return ((i + step)[:, None] != j[None, :]) & inside(i, j, rows, columns)


@triton.jit
def positives_of_a_row(rows, step, SELF: tl.constexpr):
    if SELF:
        return rows // step - 1
    else:
        return 1


@triton.jit
def positive(i, k, rows, columns, step, SELF: tl.constexpr):
    """Row ``i``'s ``k``-th positive: which column, whether it exists, and where ``pos`` keeps it."""
    if SELF:
        other = (i + (k + 1) * step) % rows
        return other, i < rows, i.to(tl.int64) + k * rows.to(tl.int64)
    else:
        other = i + step
        return other, (i < rows) & (other >= 0) & (other < columns), tl.minimum(i, other).to(tl.int64)
