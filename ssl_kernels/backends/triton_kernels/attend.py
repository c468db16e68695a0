"""The forward sweep that keeps the gradient: row sums of exponentials, and the columns weighted by them.

As flash attention with one set of columns for keys and values, whose diagonal of positives is left out. Columns are
split into spans until the machine is full, and ``forward.combine`` puts the spans together in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    LOG2E,
    LOWEST,
    column_factors,
    load_or,
    load_pieces,
    logit_factor,
    products,
    row_factors,
    store_result,
    tile_factor,
    weigh_rows,
)
from ssl_kernels.backends.triton_kernels.pairs import first_distance, is_special, negatives, next_distance

# Exponentials multiply rows as float16: lifted to at most 2^15, so that those 2^-39 of the largest still count.
LIFT = tl.constexpr(15.0)

# A shift that serves every row leaves none of them out if the smallest possible exponential, 2^(LIFT - 2 bound), keeps
# the digits that are multiplied: 11 of float16 above 2^-14, 22 of two of them above 2^-3.
FIXED_LIMIT_HALF = tl.constexpr(14.5)
FIXED_LIMIT_SPLIT = tl.constexpr(9.0)


@triton.jit(do_not_specialize=["rows", "columns", "step", "span"])
def sweep(
    x_units, y_units, x_factors, y_factors, y_largest, scale, multiplier: tl.float64, sums, tops, received,
    rows, columns, step, span, padded, low_offset,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of row ``i`` against span ``c``: ``sums[c, i]`` relative to ``tops[c, i]``, and ``received[c, i, d]``."""
    DTYPE: tl.constexpr = received.dtype.element_ty
    LIMIT: tl.constexpr = FIXED_LIMIT_SPLIT if PIECES == 2 else FIXED_LIMIT_HALF
    first_row = tl.program_id(0) * BLOCK_M
    factor = logit_factor(scale, multiplier, DTYPE)
    bound = tl.abs(factor) * LOG2E
    fixed = (bound <= LIMIT) & NORMALIZE
    shift = bound - LIFT
    factor = tile_factor(factor, fixed)
    largest = load_or(y_largest, 1.0)

    i = first_row + tl.arange(0, BLOCK_M)
    q, q_low = load_pieces(x_units, low_offset, i, tl.arange(0, BLOCK_K), WIDTH, PIECES)
    row_factor = row_factors(x_factors, i, factor, DTYPE)

    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    top = tl.zeros([BLOCK_M], DTYPE) + tl.where(fixed, shift / LOG2E, LOWEST)
    total = tl.zeros([BLOCK_M], DTYPE)
    result = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
    start = tl.program_id(1) * span
    distance = first_distance(first_row, start, rows, step, BLOCK_N, False)
    for first_column in tl.range(start, tl.minimum(start + span, columns), BLOCK_N, num_stages=STAGES):
        j = first_column + tl.arange(0, BLOCK_N)
        acc, k, k_low = products(
            x_units, y_units, low_offset, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
        )  # fmt: skip
        f_j, relative_f_j = column_factors(y_factors, largest, j)
        t = acc * row_factor[:, None] * f_j
        if is_special(distance, first_row, first_column, rows, columns, step, BLOCK_M, BLOCK_N, False):
            t = tl.where(negatives(i, j, rows, columns, step, False), t, float("-inf"))
        distance = next_distance(distance, step, BLOCK_N, False)
        if fixed:
            e = tl.math.exp2(t - shift)
        else:
            higher = tl.maximum(top, tl.max(t, 1) - LIFT / LOG2E)
            e = tl.exp(t - higher[:, None])
            keep = tl.exp(top - higher)
            total = total * keep
            result = result * keep[:, None]
            top = higher
        total += tl.sum(e, 1)
        result = weigh_rows(e * relative_f_j, k, k_low, y_units, low_offset, j, d, result, WIDTH, BLOCK_K, PIECES)
    store_result(received, result, tl.program_id(1), i, d, padded, WIDTH, BLOCK_D)
    if tl.program_id(2) == 0:
        at = tl.program_id(1).to(tl.int64) * padded + i
        tl.store(sums + at, total)
        tl.store(tops + at, top)
