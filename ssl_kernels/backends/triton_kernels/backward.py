"""The backward sweep: every program owns its rows, so nothing is added across programs and the order never changes.

With ``dneg`` the gradient of ``neg`` and ``s`` the logits, a pair of negatives carries
``G_ij = dneg_i exp(s_ij - top_i - neg_i) + dneg_j exp(s_ij - top_j - neg_j)``, the second term that of the columns
(which are rows too in a set against itself), and row ``i`` receives ``sum_j G_ij z_j``; what columns receive is the
same sweep with the two sets exchanged. Positives join row by row in ``finish``. The sums are kept without the logits'
factor, so that the gradient of the scale follows from them without dividing by it: the sum of ``z_i`` times what it
received, half of it where every entry is received by its row and by its column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import (
    LOG2E,
    UNIT,
    choose_shift,
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
from ssl_kernels.backends.triton_kernels.pairs import (
    first_distance,
    is_special,
    negatives,
    next_distance,
    positive,
    positives_of_a_row,
)
from ssl_kernels.backends.triton_kernels.rows import EPS, divisor, gather, norm, operand, power_of_two_below

# G is brought to at most 2^15 (two terms of 2^14) by one power of two for the whole matrix: float16's largest number
# is 2^16, its smallest 2^-24, so entries 2^-39 of the largest still count.
G_TOP = tl.constexpr(16384.0)


@triton.jit(do_not_specialize=["x_rows", "y_rows"])
def weigh(
    x_neg, x_top, x_dneg, y_neg, y_top, y_dneg, scale, multiplier: tl.float64, x_weights, y_weights, unit,
    x_rows, y_rows, x_padded, y_padded, NORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a row, or a column, puts into G, by kind of shift: ``dneg exp(shift - top - neg)`` or (top, neg, dneg).

    Every program finds the largest |dneg| by itself: so many numbers from the cache, cheaper than one more launch.
    """
    DTYPE: tl.constexpr = x_neg.dtype.element_ty
    largest = largest_of(x_dneg, x_rows, BLOCK)
    neg = x_neg
    top = x_top
    dneg = x_dneg
    weights = x_weights
    rows = x_rows
    padded = x_padded
    if y_neg is not None:
        largest = tl.maximum(largest, largest_of(y_dneg, y_rows, BLOCK))
        if tl.program_id(1) == 1:
            neg = y_neg
            top = y_top
            dneg = y_dneg
            weights = y_weights
            rows = y_rows
            padded = y_padded
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
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(unit, power.to(DTYPE))


@triton.jit
def largest_of(x, count, BLOCK: tl.constexpr):
    top = tl.zeros([BLOCK], x.dtype.element_ty)
    for start in range(0, count, BLOCK):
        j = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.abs(tl.load(x + j, mask=j < count, other=0.0)))
    return tl.max(top, 0)


@triton.jit
def load_weights(weights, k, padded):
    """(weight, top, neg) of rows ``k``; only the first means anything under a fixed shift."""
    at = weights + k
    return tl.load(at), tl.load(at + padded), tl.load(at + 2 * padded)


@triton.jit(do_not_specialize=["rows", "columns", "step", "span"])
def sweep(
    x_units, y_units, x_factors, y_factors, y_largest, scale, multiplier: tl.float64, x_weights, y_weights, received,
    rows, columns, step, span, x_padded, y_padded, low_offset,
    NORMALIZE: tl.constexpr, SELF: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``received[c, i, d]``: what row ``i`` receives from span ``c`` of the columns, in ``BLOCK_D`` of its entries.

    Of the two sides that weigh entries, one may be absent (None): only the rows were reduced.
    """
    DTYPE: tl.constexpr = received.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_M
    factor = logit_factor(scale, multiplier, DTYPE)
    fixed, shift = choose_shift(factor, NORMALIZE)
    factor = tile_factor(factor, fixed)
    largest = load_or(y_largest, 1.0)

    i = first_row + tl.arange(0, BLOCK_M)
    q, q_low = load_pieces(x_units, low_offset, i, tl.arange(0, BLOCK_K), WIDTH, PIECES)
    row_factor = row_factors(x_factors, i, factor, DTYPE)
    if x_weights is not None:
        w_i, top_i, neg_i = load_weights(x_weights, i, x_padded)

    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_M, BLOCK_D], DTYPE)
    start = tl.program_id(1) * span
    distance = first_distance(first_row, start, rows, step, BLOCK_N, SELF)
    for first_column in tl.range(start, tl.minimum(start + span, columns), BLOCK_N, num_stages=STAGES):
        j = first_column + tl.arange(0, BLOCK_N)
        acc, k, k_low = products(
            x_units, y_units, low_offset, q, q_low, i, j, DTYPE, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, STAGES
        )  # fmt: skip
        f_j, relative_f_j = column_factors(y_factors, largest, j)
        t = acc * row_factor[:, None] * f_j
        if y_weights is not None:
            w_j, top_j, neg_j = load_weights(y_weights, j, y_padded)
        if fixed:
            if y_weights is None:
                w = w_i[:, None]
            elif x_weights is None:
                w = w_j[None, :]
            else:
                w = w_i[:, None] + w_j[None, :]
            g = tl.math.exp2(t - shift) * w
        elif y_weights is None:
            g = w_i[:, None] * tl.exp((t - top_i[:, None]) - neg_i[:, None])
        elif x_weights is None:
            g = w_j[None, :] * tl.exp((t - top_j[None, :]) - neg_j[None, :])
        else:
            g = w_i[:, None] * tl.exp((t - top_i[:, None]) - neg_i[:, None])
            g += w_j[None, :] * tl.exp((t - top_j[None, :]) - neg_j[None, :])
        g = g * relative_f_j
        if is_special(distance, first_row, first_column, rows, columns, step, BLOCK_M, BLOCK_N, SELF):
            g = tl.where(negatives(i, j, rows, columns, step, SELF), g, 0.0)
        distance = next_distance(distance, step, BLOCK_N, SELF)
        total = weigh_rows(g, k, k_low, y_units, low_offset, j, d, total, WIDTH, BLOCK_K, PIECES)
    store_result(received, total, tl.program_id(1), i, d, x_padded, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=["rows", "columns", "step", "spans"])
def finish(
    xs, strides, counts, firsts, dxs, y_units, y_factors, y_largest, scale, multiplier: tl.float64, received, unit,
    dpos, y_dpos, by_program, rows, columns, step, spans, padded, low_offset, width,
    NORMALIZE: tl.constexpr, SELF: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
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
    g = g * (load_or(unit, 1.0) * (1.0 / UNIT)) * load_or(y_largest, 1.0)

    if dpos is not None:
        for k in range(0, positives_of_a_row(rows, step, SELF)):
            other, exists, at_k = positive(i, k, rows, columns, step, SELF)
            w = tl.load(dpos + at_k, mask=exists, other=0.0)
            if SELF:
                # the other's positive that row i is
                back = positives_of_a_row(rows, step, SELF) - 1 - k
                w += tl.load(dpos + (other.to(tl.int64) + back * rows.to(tl.int64)), mask=exists, other=0.0)
            elif y_dpos is not None:
                w += tl.load(y_dpos + at_k, mask=exists, other=0.0)
            y = operand(y_units, y_factors, other, exists, d, low_offset, PIECES, WIDTH, DTYPE)
            g += w[:, None] * y

    x = gather(xs, strides, counts, firsts, i, d, width, DTYPE)
    n = norm(x)
    if NORMALIZE:
        x = x / divisor(n)[:, None]
    along = tl.sum(x * g, 1)
    twice = 2.0 if SELF else 1.0
    tl.store(by_program + tl.program_id(0), tl.sum(tl.where(inside, along, 0.0), 0) / twice)

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
    for v in tl.static_range(len(dxs)):
        local = i - firsts[v]
        here = ((local >= 0) & (local < counts[v]))[:, None] & (d < width)[None, :]
        tl.store(dxs[v] + (local.to(tl.int64)[:, None] * width + d[None, :]), g.to(OUT), mask=here)


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
