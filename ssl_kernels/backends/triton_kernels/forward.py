"""The forward sweep: sums of exponentials over the negatives of rows and columns, by pairs of groups of them."""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    LOG2E,
    LOWEST,
    UNIT,
    choose_shift,
    load_or,
    load_pieces,
    logit_factor,
    products,
    row_factors,
    tile_factor,
)
from ssl_kernels.backends.triton_kernels.pairs import (
    first_distance,
    is_special,
    negatives,
    next_distance,
    positive,
    positives_of_a_row,
)
from ssl_kernels.backends.triton_kernels.rows import operand


@triton.jit(do_not_specialize=["rows", "columns", "step"])
def sweep(
    x_units, y_units, x_factors, y_factors, scale, multiplier: tl.float64, x_sums, y_sums, x_tops, y_tops,
    rows, columns, step, x_group, y_group, x_padded, y_padded, low_offset,
    NORMALIZE: tl.constexpr, SELF: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``x_sums[b, i]``: what the columns of group ``b`` add to row ``i``; ``y_sums[a, j]`` the same for columns.

    The program of groups (a, b) walks the rows of a against the columns of b. Row sums stay in registers and go to
    ``x_sums[b, rows of a]``; column sums are added up in ``y_sums[a, columns of b]``, which no other program touches,
    so the order of additions is fixed. Under a fixed shift one exponential serves both. With a running maximum the two
    have different shifts and cost an exponential each, from one product; the maxima that the sums are relative to go
    to ``x_tops`` and ``y_tops``.

    A set against itself (then ``y_sums`` is ``x_sums``) is walked above the diagonal only. The pair (a, a) is walked
    whole, rows only: 1 / (number of groups) more work, and no special case.
    """
    DTYPE: tl.constexpr = x_sums.dtype.element_ty
    a = tl.program_id(1)
    b = tl.program_id(0)
    if (b < a) & SELF:
        return
    factor = logit_factor(scale, multiplier, DTYPE)
    fixed, shift = choose_shift(factor, NORMALIZE)
    factor = tile_factor(factor, fixed)
    d = tl.arange(0, BLOCK_K)
    by_row = b.to(tl.int64) * x_padded
    by_column = a.to(tl.int64) * y_padded
    last_row = tl.minimum(a * x_group + x_group, rows)
    last_column = tl.minimum(b * y_group + y_group, columns)
    for first_row in range(a * x_group, last_row, BLOCK_M):
        i = first_row + tl.arange(0, BLOCK_M)
        q, q_low = load_pieces(x_units, low_offset, i, d, WIDTH, PIECES)
        row_factor = row_factors(x_factors, i, factor, DTYPE)
        top = tl.full([BLOCK_M], LOWEST, DTYPE)
        total = tl.zeros([BLOCK_M], DTYPE)
        distance = first_distance(first_row, b * y_group, rows, step, BLOCK_N, SELF)
        for first_column in tl.range(b * y_group, last_column, BLOCK_N, num_stages=STAGES):
            j = first_column + tl.arange(0, BLOCK_N)
            acc, _, _ = products(
                x_units, y_units, low_offset, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
            )  # fmt: skip
            t = acc * row_factor[:, None]
            if y_factors is not None:
                t = t * tl.load(y_factors + j)[None, :]
            if is_special(distance, first_row, first_column, rows, columns, step, BLOCK_M, BLOCK_N, SELF):
                t = tl.where(negatives(i, j, rows, columns, step, SELF), t, float("-inf"))
            distance = next_distance(distance, step, BLOCK_N, SELF)
            started = (j >= 0) & (first_row > a * x_group)
            if fixed:
                e = tl.math.exp2(t - shift)
                total += tl.sum(e, 1)
                if y_sums is not None and ((a != b) | (not SELF)):
                    before = tl.load(y_sums + by_column + j, mask=started, other=0.0)
                    tl.store(y_sums + by_column + j, before + tl.sum(e, 0))
            else:
                higher = tl.maximum(top, tl.max(t, 1))
                total = total * tl.exp(top - higher) + tl.sum(tl.exp(t - higher[:, None]), 1)
                top = higher
                if y_sums is not None and ((a != b) | (not SELF)):
                    before = tl.load(y_sums + by_column + j, mask=started, other=0.0)
                    top_before = tl.load(y_tops + by_column + j, mask=started, other=LOWEST)
                    above = tl.maximum(top_before, tl.max(t, 0))
                    after = before * tl.exp(top_before - above) + tl.sum(tl.exp(t - above[None, :]), 0)
                    tl.store(y_sums + by_column + j, after)
                    tl.store(y_tops + by_column + j, above)
        tl.store(x_sums + by_row + i, total)
        if fixed == 0:
            tl.store(x_tops + by_row + i, top)
        # the next block of rows reads column sums that other threads of this program have just written
        tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "columns", "step", "groups"])
def combine(
    x_units, y_units, x_factors, y_factors, y_largest, scale, multiplier: tl.float64, sums, tops, received,
    neg, pos, top, mean, rows, columns, step, groups, padded, low_offset, width,
    NORMALIZE: tl.constexpr, SELF: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``neg`` from the groups' sums, in their fixed order, ``pos`` from the same operand rows, both less ``top``.

    Positives are products of single rows: outside the sums nothing of theirs has to cancel against a tile's. Where
    columns weighted by their exponentials were ``received`` too, ``mean`` is their sum over that of the weights.
    """
    DTYPE: tl.constexpr = sums.dtype.element_ty
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i < rows
    factor = logit_factor(scale, multiplier, DTYPE)
    # what was received has a shift of its own, and kept it
    fixed, shift = choose_shift(factor, NORMALIZE & (received is None))

    base = tl.zeros([ROWS], DTYPE) + tl.where(fixed, shift / LOG2E, LOWEST)
    total = tl.zeros([ROWS], DTYPE)
    for first in range(0, groups, GROUPS):
        g = first + tl.arange(0, GROUPS)
        here = (g < groups)[:, None] & inside[None, :]
        at = g.to(tl.int64)[:, None] * padded + i[None, :]
        part = tl.load(sums + at, mask=here, other=0.0)
        if fixed == 0:
            relative_to = tl.load(tops + at, mask=here, other=LOWEST)
            higher = tl.maximum(base, tl.max(relative_to, 0))
            total = total * tl.exp(base - higher)
            part = part * tl.exp(relative_to - higher[None, :])
            base = higher
        total += tl.sum(part, 0)
    log_total = tl.log(total)

    d = tl.arange(0, BLOCK_D)
    z = operand(x_units, x_factors, i, inside, d, low_offset, PIECES, WIDTH, DTYPE) * factor
    highest = base + log_total
    for k in range(0, positives_of_a_row(rows, step, SELF)):
        other, exists, _ = positive(i, k, rows, columns, step, SELF)
        y = operand(y_units, y_factors, other, exists, d, low_offset, PIECES, WIDTH, DTYPE)
        highest = tl.where(exists, tl.maximum(highest, tl.sum(z * y, 1)), highest)
    # a row with neither negatives nor positives: -inf - -inf is not a number
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(top + i, highest, mask=inside)
    tl.store(neg + i, (base - highest) + log_total, mask=inside)
    for k in range(0, positives_of_a_row(rows, step, SELF)):
        other, exists, at = positive(i, k, rows, columns, step, SELF)
        y = operand(y_units, y_factors, other, exists, d, low_offset, PIECES, WIDTH, DTYPE)
        tl.store(pos + at, tl.sum(z * y, 1) - highest, mask=exists)

    if received is not None:
        whole = tl.zeros([ROWS, BLOCK_D], DTYPE)
        mask = inside[:, None] & (d < width)[None, :]
        row = i.to(tl.int64)
        for c in range(0, groups):
            share = tl.exp(tl.load(tops + row, mask=inside, other=LOWEST) - base)
            part = tl.load(received + (row[:, None] * WIDTH + d[None, :]), mask=mask, other=0.0)
            whole += part * share[:, None]
            row += padded.to(tl.int64)
        unit = tl.where(total == 0.0, 0.0, (1.0 / UNIT) / total) * load_or(y_largest, 1.0)
        to = mean + (i.to(tl.int64)[:, None] * width + d[None, :])
        tl.store(to, whole * unit[:, None], mask=mask)
