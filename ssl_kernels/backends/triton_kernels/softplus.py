"""The sweep of a sum over pairs: the softplus of every logit, and what its derivative sends to the rows.

Nothing is normalised over a row or a column, so value and gradients come out of one sweep; what columns receive is the
same sweep with the two sets exchanged, which leaves nothing to be added across programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    UNIT,
    column_factors,
    load_or,
    load_pieces,
    logit_factor,
    products,
    row_factors,
    store_result,
    weigh_rows,
)
from ssl_kernels.backends.triton_kernels.pairs import first_distance, inside, is_special, negatives, next_distance
from ssl_kernels.backends.triton_kernels.rows import power_of_two_below

# Derivatives multiply rows as float16. Those of a trained model are tiny, so each row's are brought up to 2^15 at most
# by a power of two, which comes down from 2^100 when a larger one turns up: those down to 2^-39 of the largest still
# count.
LIFT, HIGHEST_LIFT = tl.constexpr(32768.0), tl.constexpr(2.0**100)


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1], with all its digits where e is small, as almost all are in a trained model."""
    if e.dtype == tl.float64:
        u = 1.0 + e
        return tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    else:
        # log1p(e) / e, least largest relative error on [0, 1]: 5e-9, and 1.3e-7 as evaluated in float32
        p = e * -0.003243729704990983 + 0.019849851727485657
        p = p * e - 0.05695590004324913
        p = p * e + 0.10603213310241699
        p = p * e - 0.15305277705192566
        p = p * e + 0.19675806164741516
        p = p * e - 0.2495410144329071
        p = p * e + 0.33329957723617554
        p = p * e - 0.4999990165233612
        return (p * e + 1.0) * e


@triton.jit
def lower_lift(lift, g):
    """``lift``, or the power of two that brings the largest of each row of ``g`` into ``[LIFT / 2, LIFT)``."""
    highest = tl.max(tl.abs(g), 1).to(tl.float32)
    return tl.where(highest * lift > LIFT, (LIFT / 2) / power_of_two_below(highest), lift)


@triton.jit(do_not_specialize=["rows", "columns", "step", "span"])
def sweep(
    x_units, y_units, x_factors, y_factors, y_largest, scale, bias, multiplier: tl.float64, sums, received,
    rows, columns, step, span, padded, low_offset,
    PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``received[c, i, d]``: what row ``i`` receives from span ``c`` of the columns; ``sums``: each program's part of
    the value and of the bias's gradient. Either may be None."""
    DTYPE: tl.constexpr = tl.float64 if x_units.dtype.element_ty == tl.float64 else tl.float32
    first_row = tl.program_id(0) * BLOCK_M
    factor = logit_factor(scale, multiplier, DTYPE) / (UNIT * UNIT)
    offset = tl.zeros([], DTYPE)
    if bias is not None:
        offset = tl.load(bias).to(DTYPE)
    largest = load_or(y_largest, 1.0)

    i = first_row + tl.arange(0, BLOCK_M)
    q, q_low = load_pieces(x_units, low_offset, i, tl.arange(0, BLOCK_K), WIDTH, PIECES)
    row_factor = row_factors(x_factors, i, factor, DTYPE)

    value = tl.zeros([BLOCK_M], DTYPE)
    slope = tl.zeros([BLOCK_M], DTYPE)
    if received is not None:
        d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        result = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
        lift = tl.full([BLOCK_M], HIGHEST_LIFT, tl.float32)
    start = tl.program_id(1) * span
    distance = first_distance(first_row, start, rows, step, BLOCK_N, False)
    for first_column in tl.range(start, tl.minimum(start + span, columns), BLOCK_N, num_stages=STAGES):
        j = first_column + tl.arange(0, BLOCK_N)
        acc, k, k_low = products(
            x_units, y_units, low_offset, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
        )  # fmt: skip
        f_j, relative_f_j = column_factors(y_factors, largest, j)
        s = acc * row_factor[:, None] * f_j + offset
        special = is_special(distance, first_row, first_column, rows, columns, step, BLOCK_M, BLOCK_N, False)
        distance = next_distance(distance, step, BLOCK_N, False)
        if special:
            s = tl.where(negatives(i, j, rows, columns, step, False), s, -s)
            s = tl.where(inside(i, j, rows, columns), s, float("-inf"))
        e = tl.exp(-tl.abs(s))
        if sums is not None:
            value += tl.sum(tl.maximum(s, 0.0) + log1p(e), 1)
        g = tl.where(s >= 0, 1.0, e) / (1.0 + e)
        if special:
            g = tl.where(negatives(i, j, rows, columns, step, False), g, -g)
        if received is not None:
            slope += tl.sum(g, 1)
            g = g * relative_f_j
            lower = lower_lift(lift, g)
            result = result * (lower / lift)[:, None]
            lift = lower
            g = g * lift[:, None]
            result = weigh_rows(g, k, k_low, y_units, low_offset, j, d, result, WIDTH, BLOCK_K, PIECES)
    if received is not None:
        store_result(received, result * (1.0 / lift)[:, None], tl.program_id(1), i, d, padded, WIDTH, BLOCK_D)
    if sums is not None and tl.program_id(2) == 0:
        at = sums + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1))
        tl.store(at, tl.sum(value, 0))
        tl.store(at + tl.num_programs(0) * tl.num_programs(1), tl.sum(slope, 0))


@triton.jit(do_not_specialize=["programs", "row_programs"])
def add_up(sums, along, multiplier: tl.float64, value, dscale, dbias, programs, row_programs, BLOCK: tl.constexpr):
    """Value, scale's and bias's gradients: the programs' parts, added up by one program in one order, in float64."""
    tl.store(value, add(sums, programs, BLOCK).to(value.dtype.element_ty))
    if along is not None:
        tl.store(dbias, add(sums + programs, programs, BLOCK).to(dbias.dtype.element_ty))
        tl.store(dscale, (add(along, row_programs, BLOCK) * multiplier).to(dscale.dtype.element_ty))
    else:
        tl.store(dbias, 0.0)
        tl.store(dscale, 0.0)


@triton.jit
def add(parts, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total += tl.load(parts + k, mask=k < count, other=0.0).to(tl.float64)
    return tl.sum(total, 0)
