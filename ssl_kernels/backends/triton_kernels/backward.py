"""The backward sweep: every program owns its rows, so nothing is added across programs and the order never changes.

With ``dneg`` the gradient of ``neg`` and ``s`` the logits, a pair of negatives carries
``G_ij = dneg_i exp(s_ij - top_i - neg_i) + dneg_j exp(s_ij - top_j - neg_j)`` and row ``i`` receives
``sum_j G_ij z_j``; positives join row by row in ``finish``. The sums are kept without the logits' factor, so that the
gradient of the scale follows from them without dividing by it (Euler: half the sum of ``z_i`` times what it received).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    LOG2E,
    UNIT,
    choose_shift,
    dot,
    first_distance,
    is_special,
    load_rows,
    logit_factor,
    negatives,
    next_distance,
    products,
    tile_factor,
)
from ssl_kernels.backends.triton_kernels.rows import EPS, divisor, gather, norm, operand, power_of_two_below

# G is brought to at most 2^15 (two terms of 2^14) by one power of two for the whole matrix: float16's largest number
# is 2^16, its smallest 2^-24, so entries 2^-39 of the largest still count.
G_TOP = tl.constexpr(16384.0)


@triton.jit(do_not_specialize=["rows"])
def weigh(
    neg, top, dneg, factors, scale, multiplier: tl.float64, weights, unit, rows, padded,
    NORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a row puts into G, by kind of shift: ``dneg exp(shift - top - neg)`` or (top, neg, dneg).

    Every program finds the largest |dneg| by itself: M numbers from the cache, cheaper than one more launch.
    """
    DTYPE: tl.constexpr = neg.dtype.element_ty
    largest = tl.zeros([BLOCK], DTYPE)
    largest_factor = tl.zeros([BLOCK], DTYPE)
    for start in range(0, rows, BLOCK):
        j = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(dneg + j, mask=j < rows, other=0.0)))
        if factors is not None:
            largest_factor = tl.maximum(largest_factor, tl.load(factors + j, mask=j < rows, other=0.0))
    largest = tl.max(largest, 0)
    if factors is not None:
        largest = largest * tl.max(largest_factor, 0)
    # 2^-100 keeps the power finite; smaller gradients than that flush to zero
    power = power_of_two_below(tl.maximum(largest.to(tl.float32), 7.9e-31))
    power = tl.where(largest > 0, power * (2.0 / G_TOP), 1.0)

    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.load(neg + i, mask=i < rows, other=0.0)
    t = tl.load(top + i, mask=i < rows, other=0.0)
    dn = tl.load(dneg + i, mask=i < rows, other=0.0) / power
    # a row without negatives has nobody to send a gradient to
    alone = n == float("-inf")
    n = tl.where(alone, 0.0, n)
    dn = tl.where(alone, 0.0, dn)
    fixed, shift = choose_shift(logit_factor(scale, multiplier, DTYPE), NORMALIZE)
    if fixed:
        # in float64: the fast exponential of float32 would lose five bits of it, and this is one number a row
        exponent = (shift / LOG2E - t).to(tl.float64) - n
        tl.store(weights + i, dn * tl.exp(exponent).to(DTYPE), mask=i < padded)
    else:
        tl.store(weights + i, dn, mask=i < padded)
        tl.store(weights + padded + i, t, mask=i < padded)
        tl.store(weights + 2 * padded + i, n, mask=i < padded)
    if tl.program_id(0) == 0:
        tl.store(unit, power.to(DTYPE))


@triton.jit(do_not_specialize=["rows", "period", "span"])
def sweep(
    units, factors, scale, multiplier: tl.float64, weights, received, rows, period, span, padded, low_offset,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``received[c, i, d]``: what row ``i`` receives from span ``c`` of the columns, in ``BLOCK_D`` of its entries."""
    DTYPE: tl.constexpr = received.dtype.element_ty
    OPERAND: tl.constexpr = units.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_M
    low = units + low_offset
    factor = logit_factor(scale, multiplier, DTYPE)
    fixed, shift = choose_shift(factor, NORMALIZE)
    factor = tile_factor(factor, fixed)

    i = first_row + tl.arange(0, BLOCK_M)
    dk = tl.arange(0, BLOCK_K)
    q = load_rows(units, i, dk, WIDTH)
    q_low = q
    if PIECES == 2:
        q_low = load_rows(low, i, dk, WIDTH)
    row_factor = tl.zeros([BLOCK_M], DTYPE) + factor
    if factors is not None:
        row_factor = row_factor * tl.load(factors + i)
    w_i = tl.load(weights + i)
    top_i = tl.load(weights + padded + i)
    neg_i = tl.load(weights + 2 * padded + i)

    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
    start = tl.program_id(1) * span
    distance = first_distance(first_row, start, rows, period, BLOCK_N)
    for first_column in tl.range(start, tl.minimum(start + span, rows), BLOCK_N, num_stages=STAGES):
        j = first_column + tl.arange(0, BLOCK_N)
        acc, k, k_low = products(
            units, low, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
        )  # fmt: skip
        t = acc * row_factor[:, None]
        if factors is not None:
            f_j = tl.load(factors + j)
            t = t * f_j[None, :]
        w_j = tl.load(weights + j)
        if fixed:
            g = tl.math.exp2(t - shift) * (w_i[:, None] + w_j[None, :])
        else:
            top_j = tl.load(weights + padded + j)
            neg_j = tl.load(weights + 2 * padded + j)
            g = w_i[:, None] * tl.exp((t - top_i[:, None]) - neg_i[:, None])
            g += w_j[None, :] * tl.exp((t - top_j[None, :]) - neg_j[None, :])
        if factors is not None:
            g = g * f_j[None, :]
        if is_special(distance, first_row, first_column, rows, period, BLOCK_M, BLOCK_N):
            g = tl.where(negatives(i, j, rows, period), g, 0.0)
        distance = next_distance(distance, period, BLOCK_N)
        if BLOCK_K != WIDTH:
            inside = (j >= 0)[:, None] & (d < WIDTH)[None, :]
            at = units + (j.to(tl.int64)[:, None] * WIDTH + d[None, :])
            k = tl.load(at, mask=inside, other=0.0)
            k_low = k
            if PIECES == 2:
                k_low = tl.load(at + low_offset, mask=inside, other=0.0)
        high = g.to(OPERAND)
        rest = high
        if PIECES == 2:
            rest = (g - high.to(DTYPE)).to(OPERAND)
        total = dot(high, rest, k, k_low, total, PIECES)
    to = received + (tl.program_id(1).to(tl.int64) * padded + i.to(tl.int64))[:, None] * WIDTH + d[None, :]
    if BLOCK_D == WIDTH:
        tl.store(to, total)
    else:
        tl.store(to, total, mask=(i >= 0)[:, None] & (d < WIDTH)[None, :])


@triton.jit(do_not_specialize=["rows", "period", "spans"])
def finish(
    xs, strides, counts, dxs, units, factors, scale, multiplier: tl.float64, received, unit, dpos, by_program,
    rows, period, spans, padded, low_offset, width,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From what a row received to the gradient of the input: the spans' sums, the positives, the factor, the norm."""
    DTYPE: tl.constexpr = received.dtype.element_ty
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i < rows
    d = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (d < WIDTH)[None, :]

    g = tl.zeros([ROWS, BLOCK_D], DTYPE)
    at = received + (i.to(tl.int64)[:, None] * WIDTH + d[None, :])
    for c in range(0, spans):
        g += tl.load(at, mask=mask, other=0.0)
        at += padded.to(tl.int64) * WIDTH
    g = g * (tl.load(unit) * (1.0 / UNIT))

    views = rows // period
    for o in range(1, views):
        twin = (i + o * period) % rows
        to_twin = tl.load(dpos + (i.to(tl.int64) + (o - 1) * rows.to(tl.int64)), mask=inside, other=0.0)
        from_twin = tl.load(dpos + (twin.to(tl.int64) + (views - o - 1) * rows.to(tl.int64)), mask=inside, other=0.0)
        y = operand(units, factors, twin, inside, d, low_offset, PIECES, WIDTH, DTYPE)
        g += (to_twin + from_twin)[:, None] * y

    x = gather(xs, strides, counts, i, d, width, DTYPE)
    n = norm(x)
    if NORMALIZE:
        x = x / divisor(n)[:, None]
    along = tl.sum(x * g, 1)
    tl.store(by_program + tl.program_id(0), tl.sum(tl.where(inside, along, 0.0), 0) * 0.5)

    factor = logit_factor(scale, multiplier, DTYPE)
    OUT: tl.constexpr = dxs[0].dtype.element_ty
    if NORMALIZE:
        through = (g - along[:, None] * x) * (factor / divisor(n))[:, None]
        # below EPS the norm is a constant: no projection, and a huge gradient that half precision must not overflow
        constant = g * (factor / EPS)
        if OUT == tl.float16:
            constant = clamp(constant, 65504.0)
        elif OUT == tl.bfloat16:
            constant = clamp(constant, 3.3895313892515355e38)
        g = tl.where((n > EPS)[:, None], through, constant)
    else:
        g = g * factor
    first = 0
    for v in tl.static_range(len(dxs)):
        local = i - first
        here = ((local >= 0) & (local < counts[v]))[:, None] & (d < width)[None, :]
        tl.store(dxs[v] + (local.to(tl.int64)[:, None] * width + d[None, :]), g.to(OUT), mask=here)
        first += counts[v]


@triton.jit
def clamp(x, top):
    """Into [-top, top]; NaN stays NaN."""
    return tl.where(x > top, top, tl.where(x < -top, -top, x))


@triton.jit
def sum_scale(by_program, multiplier: tl.float64, dscale, count, BLOCK: tl.constexpr):
    """The gradient of the scale: the programs' sums, added up by one program in one order."""
    total = tl.zeros([BLOCK], by_program.dtype.element_ty)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total += tl.load(by_program + k, mask=k < count, other=0.0)
    result = tl.sum(total, 0) * tl.full([], multiplier, by_program.dtype.element_ty)
    tl.store(dscale, result.to(dscale.dtype.element_ty))
