"""What both sweeps must agree on: how a tile becomes logits, which entries count, under which shift."""

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
def dot(a, a_low, b, b_low, acc, PIECES: tl.constexpr):
    """a @ b on top of acc; with two pieces (a + a_low) @ (b + b_low) less the product of the low halves."""
    if PIECES == 2:
        acc = tl.dot(a_low, b, acc, input_precision="ieee", out_dtype=acc.dtype)
        acc = tl.dot(a, b_low, acc, input_precision="ieee", out_dtype=acc.dtype)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def products(
    units, low, q, q_low, i, j, DTYPE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of inner products of operand rows ``i`` and ``j``, and the column operands, where they fit whole.

    With ``BLOCK_K == WIDTH`` the row operand ``q`` stays where it is for the whole sweep; otherwise both are streamed.
    """
    acc = tl.zeros([BLOCK_M, BLOCK_N], DTYPE)
    k = q
    k_low = q_low
    if BLOCK_K == WIDTH:
        d = tl.arange(0, BLOCK_K)
        k = load_rows(units, j, d, WIDTH)
        k_low = k
        if PIECES == 2:
            k_low = load_rows(low, j, d, WIDTH)
        acc = dot(q, q_low, tl.trans(k), tl.trans(k_low), acc, PIECES)
    else:
        for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
            d = start + tl.arange(0, BLOCK_K)
            a = load_rows(units, i, d, WIDTH)
            b = load_rows(units, j, d, WIDTH)
            a_low = a
            b_low = b
            if PIECES == 2:
                a_low = load_rows(low, i, d, WIDTH)
                b_low = load_rows(low, j, d, WIDTH)
            acc = dot(a, a_low, tl.trans(b), tl.trans(b_low), acc, PIECES)
    return acc, k, k_low


@triton.jit
def first_distance(first_row, first_column, rows, period, BLOCK_N: tl.constexpr):
    """How far the last diagonal of same-sample pairs lies below a tile's top right corner."""
    return (first_column + BLOCK_N - 1 - first_row + rows) % period


@triton.jit
def next_distance(distance, period, BLOCK_N: tl.constexpr):
    """The same for the next tile to the right; periods shorter than a tile are not followed (see is_special)."""
    distance += BLOCK_N
    return tl.where(distance >= period, distance - period, distance)


@triton.jit
def is_special(distance, first_row, first_column, rows, period, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds a pair of one sample or an edge of the matrix: only then does it pay for a mask."""
    return (
        (distance < BLOCK_M + BLOCK_N - 1)
        | (period < BLOCK_M + BLOCK_N - 1)
        | (first_row + BLOCK_M > rows)
        | (first_column + BLOCK_N > rows)
    )


@triton.jit
def negatives(i, j, rows, period):
    """The mask of the pairs that count: of different samples, and inside the matrix."""
    return ((i % period)[:, None] != (j % period)[None, :]) & (i < rows)[:, None] & (j < rows)[None, :]
