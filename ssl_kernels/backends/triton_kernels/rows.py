"""From the inputs to operand rows: normalised, stacked, padded and rounded as the tensor cores want them."""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_kernels.backends.triton_kernels.logits import UNIT

EPS = tl.constexpr(1e-12)


@triton.jit
def gather(xs, strides, counts, firsts, row, d, WIDTH, DTYPE: tl.constexpr):
    """``[row, d]`` of the stacked inputs, each from its row of ``firsts`` on, zero elsewhere.

    Every row lies in one input: the other loads are switched off.
    """
    x = tl.zeros([row.shape[0], d.shape[0]], DTYPE)
    for v in tl.static_range(len(xs)):
        local = row - firsts[v]
        here = ((local >= 0) & (local < counts[v]))[:, None] & (d < WIDTH)[None, :]
        part = tl.load(xs[v] + (local.to(tl.int64)[:, None] * strides[v] + d[None, :]), mask=here, other=0.0)
        x = tl.where(here, part.to(DTYPE), x)
    return x


@triton.jit
def norm(x):
    """Row norms. The largest entry goes out first, so that squares neither overflow nor vanish."""
    top = tl.max(tl.abs(x), 1)
    top = tl.where(top > 0, top, 1.0)
    y = x / top[:, None]
    return top * tl.sqrt(tl.sum(y * y, 1))


@triton.jit
def divisor(n):
    """max(norm, EPS), but NaN for NaN."""
    return tl.where(n < EPS, EPS, n)


@triton.jit
def power_of_two_below(x):
    """The power of two in (x/2, x] for a positive float32, by its exponent bits; 0 for 0."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def prepare(
    xs, strides, counts, firsts, units, factors, low_offset, width,
    NORMALIZE: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Operand rows of all inputs into one buffer ``[PIECES, padded rows, WIDTH]``.

    Unit rows go to float16 whatever the input: they lie in [-1, 1], where it is eight times finer than bfloat16 at the
    same rate. float32 becomes two of them, hi + lo. Rows that are not normalised go divided by a power of two, which
    loses nothing, and the power goes to ``factors``.
    """
    DTYPE: tl.constexpr = tl.float64 if units.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    x = gather(xs, strides, counts, firsts, row, d, width, DTYPE)
    if NORMALIZE:
        x = x / divisor(norm(x))[:, None]
    elif factors is not None:
        power = power_of_two_below(tl.max(tl.abs(x), 1))
        power = tl.where(power > 0, power, 1.0)
        x = x / power[:, None]
        tl.store(factors + row, power)
    x = x * UNIT
    high = x.to(units.dtype.element_ty)
    to = units + (row.to(tl.int64)[:, None] * WIDTH + d[None, :])
    inside = (d < WIDTH)[None, :]
    tl.store(to, high, mask=inside)
    if PIECES == 2:
        tl.store(to + low_offset, (x - high.to(DTYPE)).to(units.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["x_rows", "y_rows"])
def largest_factors(x_factors, y_factors, largest, x_rows, y_rows, BLOCK: tl.constexpr):
    """The largest factor of either set, the unit in which a product with its rows is kept: a program a set."""
    factors = x_factors
    rows = x_rows
    if tl.program_id(0) == 1:
        factors = y_factors
        rows = y_rows
    top = tl.zeros([BLOCK], tl.float32)
    for start in range(0, rows, BLOCK):
        j = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.load(factors + j, mask=j < rows, other=0.0))
    tl.store(largest + tl.program_id(0), tl.max(top, 0))


@triton.jit
def operand(units, factors, row, inside, d, low_offset, PIECES: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """The rows that the sweeps see, back in their own units."""
    at = units + (row.to(tl.int64)[:, None] * WIDTH + d[None, :])
    mask = inside[:, None] & (d < WIDTH)[None, :]
    z = tl.load(at, mask=mask, other=0.0).to(DTYPE)
    if PIECES == 2:
        z += tl.load(at + low_offset, mask=mask, other=0.0).to(DTYPE)
    if factors is not None:
        z = z * tl.load(factors + row, mask=inside, other=0.0)[:, None]
    return z * (1.0 / UNIT)
