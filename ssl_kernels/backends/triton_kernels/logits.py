"""What all sweeps must agree on: how a tile becomes logits, under which shift, and how what follows multiplies rows."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# Operand rows are stored times 2^10 (undone in the factor of the logits). Unit rows then fill float16's normal range,
# so that the low half of a split float32 keeps its digits: hi + lo holds 22 bits of every entry above 2^-20.
UNIT = tl.constexpr(1024.0)

# Logits in base 2 within +-80 are summed under one constant shift: 2^(t - shift) then lies in 2^-100 .. 2^60, its sum
# over 2^60 rows still in float32, and so do the backward's factors 2^(shift - neg). That is |scale| <= 55, every
# temperature from 0.0181 up. Beyond it rows keep a running maximum.
FIXED_LIMIT = tl.constexpr(80.0)
HEADROOM = tl.constexpr(60.0)

# Under a fixed shift logits are in base 2, which saves a multiplication an entry. Beyond the limit they are in nats, so
# that a multiply-add takes the row's maximum from the product itself and nothing as large as a logit is ever rounded.

# Where a running maximum starts: finite, so that a tile without a single counted entry does not make inf - inf.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def logit_factor(scale, multiplier, DTYPE: tl.constexpr):
    """multiplier * scale, read on the device; ``scale`` is a pointer or None."""
    factor = tl.full([], multiplier, DTYPE)
    if scale is not None:
        factor = factor * tl.load(scale).to(DTYPE)
    return factor


@triton.jit
def choose_shift(factor, NORMALIZE: tl.constexpr):
    """(fixed, shift): whether one shift serves every row, and which (base 2). Rows off the sphere have no bound."""
    bound = tl.abs(factor) * LOG2E
    fixed = (bound <= FIXED_LIMIT) & NORMALIZE
    return fixed, tl.maximum(bound - HEADROOM, 0.0)


@triton.jit
def tile_factor(factor, fixed):
    """What turns products of operand rows into logits: base 2 under a fixed shift, nats with a running maximum."""
    return tl.where(fixed, factor * LOG2E, factor) / (UNIT * UNIT)


@triton.jit
def load_rows(units, rows, d, WIDTH: tl.constexpr):
    """``[rows, d]`` of the operand rows. The buffer is padded with zeros in both directions: no mask."""
    return tl.load(units + (rows.to(tl.int64)[:, None] * WIDTH + d[None, :]))


@triton.jit
def load_pieces(units, low_offset, rows, d, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """Operand rows, and their low halves where there are any (otherwise the rows again, which nobody reads)."""
    high = load_rows(units, rows, d, WIDTH)
    low = high
    if PIECES == 2:
        low = load_rows(units + low_offset, rows, d, WIDTH)
    return high, low


@triton.jit
def dot(a, a_low, b, b_low, acc, PIECES: tl.constexpr):
    """a @ b on top of acc; with two pieces (a + a_low) @ (b + b_low) less the product of the low halves."""
    if PIECES == 2:
        acc = tl.dot(a_low, b, acc, input_precision="ieee", out_dtype=acc.dtype)
        acc = tl.dot(a, b_low, acc, input_precision="ieee", out_dtype=acc.dtype)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def products(
    x_units, y_units, low_offset, q, q_low, i, j, DTYPE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of inner products of rows ``i`` of x and ``j`` of y, and the column operands, where they fit whole.

    With ``BLOCK_K == WIDTH`` the row operand ``q`` stays where it is for the whole sweep; otherwise both are streamed.
    """
    acc = tl.zeros([BLOCK_M, BLOCK_N], DTYPE)
    k = q
    k_low = q_low
    if BLOCK_K == WIDTH:
        k, k_low = load_pieces(y_units, low_offset, j, tl.arange(0, BLOCK_K), WIDTH, PIECES)
        acc = dot(q, q_low, tl.trans(k), tl.trans(k_low), acc, PIECES)
    else:
        for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
            d = start + tl.arange(0, BLOCK_K)
            a, a_low = load_pieces(x_units, low_offset, i, d, WIDTH, PIECES)
            b, b_low = load_pieces(y_units, low_offset, j, d, WIDTH, PIECES)
            acc = dot(a, a_low, tl.trans(b), tl.trans(b_low), acc, PIECES)
    return acc, k, k_low


@triton.jit
def row_factors(factors, i, factor, DTYPE: tl.constexpr):
    """What turns a row's products into its logits."""
    result = tl.zeros([i.shape[0]], DTYPE) + factor
    if factors is not None:
        result = result * tl.load(factors + i)
    return result


@triton.jit
def load_or(number, otherwise):
    """One number, read on the device, or what stands for it where there is none."""
    if number is None:
        return otherwise
    else:
        return tl.load(number)


@triton.jit
def column_factors(factors, largest, j):
    """The factors of the columns, and in units of the largest, which float16 can hold; (1, 1) where there are none."""
    f = 1.0
    relative = 1.0
    if factors is not None:
        f = tl.load(factors + j)[None, :]
        relative = f / largest
    return f, relative


@triton.jit
def weigh_rows(
    g, k, k_low, units, low_offset, j, d, total,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """``total + g @ rows``: entries ``d`` of the rows ``j``, loaded once more where the tile's own are not whole."""
    if BLOCK_K != WIDTH:
        inside = (j >= 0)[:, None] & (d < WIDTH)[None, :]
        at = units + (j.to(tl.int64)[:, None] * WIDTH + d[None, :])
        k = tl.load(at, mask=inside, other=0.0)
        k_low = k
        if PIECES == 2:
            k_low = tl.load(at + low_offset, mask=inside, other=0.0)
    high = g.to(k.dtype)
    rest = high
    if PIECES == 2:
        rest = (g - high.to(g.dtype)).to(k.dtype)
    return dot(high, rest, k, k_low, total, PIECES)


@triton.jit
def store_result(received, total, span, i, d, padded, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """``received[span, i, d]``."""
    to = received + (span.to(tl.int64) * padded + i.to(tl.int64))[:, None] * WIDTH + d[None, :]
    if BLOCK_D == WIDTH:
        tl.store(to, total)
    else:
        tl.store(to, total, mask=(i >= 0)[:, None] & (d < WIDTH)[None, :])
