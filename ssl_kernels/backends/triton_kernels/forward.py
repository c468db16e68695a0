"""The forward sweep: row sums of exponentials over the negatives, by pairs of row groups, each pair once."""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    LOG2E,
    LOWEST,
    choose_shift,
    first_distance,
    is_special,
    load_rows,
    logit_factor,
    negatives,
    next_distance,
    products,
    tile_factor,
)
from ssl_kernels.backends.triton_kernels.rows import operand


@triton.jit(do_not_specialize=["rows", "period"])
def sweep(
    units, factors, scale, multiplier: tl.float64, sums, rows, period, group, padded, low_offset, top_offset,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``sums[g, i]``: what the columns of group ``g`` add to row ``i``; every entry is written by one program.

    The program of groups (a, b), a < b, walks the rows of a against the columns of b. Under a fixed shift one
    exponential serves both: row sums stay in registers and go to ``sums[b, rows of a]``, column sums are added up in
    ``sums[a, rows of b]``, which no other program touches, so the order of additions is fixed. With a running maximum
    the two directions have different shifts, so the program walks b against a afterwards, and the maxima that the sums
    are relative to are kept ``top_offset`` behind them.
    The diagonal pair (a, a) is walked whole, rows only: 1 / (number of groups) more work, and no special case.
    """
    DTYPE: tl.constexpr = sums.dtype.element_ty
    a = tl.program_id(1)
    b = tl.program_id(0)
    if b < a:
        return
    factor = logit_factor(scale, multiplier, DTYPE)
    fixed, shift = choose_shift(factor, NORMALIZE)
    factor = tile_factor(factor, fixed)
    low = units + low_offset
    d = tl.arange(0, BLOCK_K)
    turns = tl.where(fixed | (a == b), 1, 2)
    for turn in range(0, turns):
        rows_of = tl.where(turn == 0, a, b)
        columns_of = tl.where(turn == 0, b, a)
        by_row = sums + columns_of.to(tl.int64) * padded
        by_column = sums + rows_of.to(tl.int64) * padded
        last_row = tl.minimum(rows_of * group + group, rows)
        last_column = tl.minimum(columns_of * group + group, rows)
        for first_row in range(rows_of * group, last_row, BLOCK_M):
            i = first_row + tl.arange(0, BLOCK_M)
            q = load_rows(units, i, d, WIDTH)
            q_low = q
            if PIECES == 2:
                q_low = load_rows(low, i, d, WIDTH)
            row_factor = tl.zeros([BLOCK_M], DTYPE) + factor
            if factors is not None:
                row_factor = row_factor * tl.load(factors + i)
            top = tl.full([BLOCK_M], LOWEST, DTYPE)
            total = tl.zeros([BLOCK_M], DTYPE)
            distance = first_distance(first_row, columns_of * group, rows, period, BLOCK_N)
            for first_column in tl.range(columns_of * group, last_column, BLOCK_N, num_stages=STAGES):
                j = first_column + tl.arange(0, BLOCK_N)
                acc, _, _ = products(
                    units, low, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
                )  # fmt: skip
                t = acc * row_factor[:, None]
                if factors is not None:
                    t = t * tl.load(factors + j)[None, :]
                if is_special(distance, first_row, first_column, rows, period, BLOCK_M, BLOCK_N):
                    t = tl.where(negatives(i, j, rows, period), t, float("-inf"))
                distance = next_distance(distance, period, BLOCK_N)
                if fixed:
                    e = tl.math.exp2(t - shift)
                    total += tl.sum(e, 1)
                    if a != b:
                        started = (j >= 0) & (first_row > rows_of * group)
                        before = tl.load(by_column + j, mask=started, other=0.0)
                        tl.store(by_column + j, before + tl.sum(e, 0))
                else:
                    higher = tl.maximum(top, tl.max(t, 1))
                    total = total * tl.exp(top - higher) + tl.sum(tl.exp(t - higher[:, None]), 1)
                    top = higher
            tl.store(by_row + i, total)
            if fixed == 0:
                tl.store(by_row + top_offset + i, top)
            # the next block of rows reads column sums that other threads of this program have just written
            tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "period", "groups"])
def combine(
    units, factors, scale, multiplier: tl.float64, sums, neg, pos, top, rows, period, groups, padded,
    low_offset, top_offset,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    MAX_GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``neg`` from the groups' sums, in their fixed order, ``pos`` from the same operand rows, both less ``top``.

    Positives are products of single rows: outside the sums nothing of theirs has to cancel against a tile's.
    """
    DTYPE: tl.constexpr = sums.dtype.element_ty
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i < rows
    factor = logit_factor(scale, multiplier, DTYPE)
    fixed, shift = choose_shift(factor, NORMALIZE)

    g = tl.arange(0, MAX_GROUPS)
    here = (g < groups)[:, None] & inside[None, :]
    part = sums + (g.to(tl.int64)[:, None] * padded + i[None, :])
    total = tl.load(part, mask=here, other=0.0)
    base = tl.zeros([ROWS], DTYPE) + shift / LOG2E
    if fixed == 0:
        tops = tl.load(part + top_offset, mask=here, other=LOWEST)
        base = tl.max(tops, 0)
        total = total * tl.exp(tops - base[None, :])
    log_total = tl.log(tl.sum(total, 0))

    d = tl.arange(0, BLOCK_D)
    z = operand(units, factors, i, inside, d, low_offset, PIECES, WIDTH, DTYPE) * factor
    highest = base + log_total
    for o in range(1, rows // period):
        twin = (i + o * period) % rows
        y = operand(units, factors, twin, inside, d, low_offset, PIECES, WIDTH, DTYPE)
        highest = tl.maximum(highest, tl.sum(z * y, 1))
    # a single row has neither negatives nor positives, and -inf - -inf is not a number
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(top + i, highest, mask=inside)
    tl.store(neg + i, (base - highest) + log_total, mask=inside)
    for o in range(1, rows // period):
        twin = (i + o * period) % rows
        y = operand(units, factors, twin, inside, d, low_offset, PIECES, WIDTH, DTYPE)
        at = pos + (i.to(tl.int64) + (o - 1) * rows.to(tl.int64))
        tl.store(at, tl.sum(z * y, 1) - highest, mask=inside)
