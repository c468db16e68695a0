"""Log-sum-exp of similarities that fall off with the distance: every program owns its rows, forward and backward.

Logits are ``outer y`` in base 2, ``y = log(1 + inner d2)`` for a Student-t, ``d2`` for a Gaussian. Every row counts
from the nearest point it has met, ``2^(outer (y - near))``: differences of ``y`` are exact where they count, and none
underflows. One degree of freedom, the Cauchy kernel, is ``1 / u``, ``u = 1 + inner d2``, and counts as ``near / u``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.gpu import distances
from ssl_kernels.backends.gpu.distances import Points
from ssl_kernels.backends.triton_kernels.logits import logit_factor

CAUCHY = tl.constexpr(distances.CAUCHY)
STUDENT = tl.constexpr(distances.STUDENT)
GAUSSIAN = tl.constexpr(distances.GAUSSIAN)

# Further than any two points are; only pairs that do not count are infinitely far.
FURTHEST = tl.constexpr(1.0e37)

# A tile of 64 x 32 distances takes 16 registers of each of 128 threads, what becomes of it up to 140 more; with 64 x 64
# the Student-t's backward spills.
TILE: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "enable_fp_fusion": True}
TILE_DOUBLE: dict[str, Any] = TILE | {"BLOCK_M": 32, "BLOCK_N": 16}  # correct, not tuned
# Up to this width the loop over the coordinates is unrolled.
UNROLLED = 4
VECTOR: dict[str, Any] = {"BLOCK": 1024, "num_warps": 4}


@triton.jit
def log2e():
    return tl.full([], 1.4426950408889634, tl.float64)  # a plain number would go through float32


@triton.jit
def kernel_factors(scale, multiplier, dof, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """``inner`` and ``outer``; NaN where T is negative. A Gaussian of T = 0 must not count what is infinitely far."""
    T = logit_factor(scale, multiplier, tl.float64)
    T = tl.where(T >= 0, T, float("nan"))
    if KIND == GAUSSIAN:
        inner = T * 0
        outer = -log2e() * tl.where(T < 1e-30, 1e-30, T)
    else:
        inner = 2 * T / dof
        outer = -0.5 * log2e() * (dof + 1)
    return inner.to(DTYPE), outer.to(DTYPE)


@triton.jit
def log1p(x, u, DTYPE: tl.constexpr):
    """log(1 + x) for x >= 0 and u = 1 + x rounded, all digits near 0 too: log u, and what the rounding lost over u."""
    SHIFT: tl.constexpr = 52 if DTYPE == tl.float64 else 23
    if DTYPE == tl.float64:
        half = tl.full([], 0x3FE6A09E667F3BCD, tl.int64)
        bits = u.to(tl.int64, bitcast=True)
    else:
        half = tl.full([], 0x3F3504F3, tl.int32)
        bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - half) >> SHIFT
    f = (bits - (exponent << SHIFT)).to(DTYPE, bitcast=True) - 1  # u / 2^exponent - 1, in [-0.29, 0.41]
    s = f / (2 + f)
    z = s * s
    p = tl.zeros(x.shape, DTYPE)
    TERMS: tl.constexpr = 11 if DTYPE == tl.float64 else 5
    for k in tl.static_range(TERMS):  # log(1 + f) = 2 atanh(s): its own series
        p = (p + tl.full([], 1.0 / (2 * (TERMS - k) + 1), DTYPE)) * z
    ln2 = tl.full([], 0.6931471805599453, DTYPE)
    return exponent.to(DTYPE) * ln2 + (2 * s + 2 * s * p) + (x - (u - 1)) / u


@triton.jit
def squared_distances(points, i, j, rows, width, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """One tile, by differences; ``points`` is ``[width, rows]``. WIDTH is the width where it is small, else 0."""
    d2 = tl.zeros([i.shape[0], j.shape[0]], DTYPE)
    a, b = points + i, points + j
    for _ in tl.static_range(WIDTH):
        difference = tl.load(a, mask=i < rows, other=0.0)[:, None] - tl.load(b, mask=j < rows, other=0.0)[None, :]
        d2 += difference * difference
        a += rows
        b += rows
    if WIDTH == 0:
        for _ in range(0, width):
            difference = tl.load(a, mask=i < rows, other=0.0)[:, None] - tl.load(b, mask=j < rows, other=0.0)[None, :]
            d2 += difference * difference
            a += rows
            b += rows
    return d2


@triton.jit
def inside(d2, inner):
    """``inner d2``; what overflows is as far away as it gets, and NaN stays NaN."""
    x = inner * d2
    return tl.where(x > FURTHEST, FURTHEST, x)


@triton.jit
def exponent_of(d2, inner, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """``y``, and ``u``, one for a Gaussian."""
    if KIND == GAUSSIAN:
        u = tl.full(d2.shape, 1.0, DTYPE)
        y = tl.where(d2 > FURTHEST, FURTHEST, d2)
    else:
        x = inside(d2, inner)
        u = 1 + x
        y = u if KIND == CAUCHY else log1p(x, u, DTYPE)
    return y, u


@triton.jit
def is_special(first_row, first_column, rows, period, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds a pair of one sample or an edge of the matrix: only then does it pay for a mask."""
    highest = first_column + BLOCK_N - 1 - first_row + rows  # the furthest diagonal; rows are whole periods
    return (highest % period < BLOCK_M + BLOCK_N - 1) | (first_row + BLOCK_M > rows) | (first_column + BLOCK_N > rows)


@triton.jit
def counts(i, j, rows, period):
    """The mask of the pairs that count: of different samples, and inside the matrix."""
    return ((i % period)[:, None] != (j % period)[None, :]) & (i < rows)[:, None] & (j < rows)[None, :]


@triton.jit(do_not_specialize=["rows", "period"])
def forward(
    points, scale, multiplier: tl.float64, dof: tl.float64, neg, low, rows, period, width,
    KIND: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = points.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_M
    i = first_row + tl.arange(0, BLOCK_M)
    inner, outer = kernel_factors(scale, multiplier, dof, KIND, DTYPE)
    near = tl.full([BLOCK_M], FURTHEST, DTYPE)
    total = tl.zeros([BLOCK_M], DTYPE)
    for first_column in range(0, rows, BLOCK_N):
        j = first_column + tl.arange(0, BLOCK_N)
        y, _ = exponent_of(squared_distances(points, i, j, rows, width, WIDTH, DTYPE), inner, KIND, DTYPE)
        if is_special(first_row, first_column, rows, period, BLOCK_M, BLOCK_N):
            y = tl.where(counts(i, j, rows, period), y, float("inf"))
        closest = tl.min(y, 1)
        nearer = tl.where(closest > near, near, closest)
        if KIND == CAUCHY:
            e = nearer[:, None] / y
            total = total * (nearer / near)
        else:
            e = tl.math.exp2(outer * (y - nearer[:, None]))
            total = total * tl.math.exp2(outer * (near - nearer))
        total += tl.sum(e, 1)
        near = nearer
    # in float64: one number a row
    exact = tl.log(total.to(tl.float64))
    if KIND == CAUCHY:
        exact -= tl.log(near.to(tl.float64))
    else:
        exact += outer.to(tl.float64) * near / log2e()
    exact = tl.where(total == 0, float("-inf"), exact)
    rounded = exact.to(DTYPE)
    tl.store(neg + i, rounded, mask=i < rows)
    tl.store(low + i, tl.where(total == 0, 0.0, exact - rounded).to(DTYPE), mask=i < rows)


@triton.jit(do_not_specialize=["rows"])
def weigh(
    neg, low, dneg, scale, multiplier: tl.float64, dof: tl.float64, near, weight, rows,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From where each row counts so that its sum is one, and its gradient; what ``near`` cannot hold joins that."""
    DTYPE: tl.constexpr = neg.dtype.element_ty
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, outer = kernel_factors(scale, multiplier, dof, KIND, DTYPE)
    n = tl.load(neg + i, mask=i < rows, other=0.0)
    w = tl.load(dneg + i, mask=i < rows, other=0.0).to(tl.float64)
    # a row without negatives has nobody to send a gradient to
    alone = n == float("-inf")
    exact = tl.where(alone, 0.0, n).to(tl.float64) + tl.load(low + i, mask=i < rows, other=0.0)
    if KIND == CAUCHY:
        from_here = tl.full([BLOCK], 1.0, DTYPE)
        w = w * tl.exp(-exact)
    else:
        exact = exact * log2e()
        from_here = (exact / outer).to(DTYPE)
        w = w * tl.math.exp2(outer.to(tl.float64) * from_here - exact)
    tl.store(near + i, from_here, mask=i < rows)
    tl.store(weight + i, tl.where(alone, 0.0, w).to(DTYPE), mask=i < rows)


@triton.jit(do_not_specialize=["rows", "period"])
def backward(
    points, scale, multiplier: tl.float64, dof: tl.float64, near, weight, received, moments, rows, period, width,
    KIND: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``received[d, i] = sum_j A_ij (z_i - z_j)_d`` and ``moments[i] = sum_j A_ij d2_ij``, with
    ``A_ij = (2^(outer (y - near_i)) weight_i + 2^(outer (y - near_j)) weight_j) / u``.

    Sums over tiles are kept in ``received``, in the program's own rows, so that the width does not matter.
    """
    DTYPE: tl.constexpr = points.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_M
    i = first_row + tl.arange(0, BLOCK_M)
    here = i < rows
    inner, outer = kernel_factors(scale, multiplier, dof, KIND, DTYPE)
    near_i = tl.load(near + i, mask=here, other=0.0)
    weight_i = tl.load(weight + i, mask=here, other=0.0)
    moment = tl.zeros([BLOCK_M], DTYPE)
    for first_column in range(0, rows, BLOCK_N):
        j = first_column + tl.arange(0, BLOCK_N)
        there = j < rows
        d2 = squared_distances(points, i, j, rows, width, WIDTH, DTYPE)
        y, u = exponent_of(d2, inner, KIND, DTYPE)
        weight_j = tl.load(weight + j, mask=there, other=0.0)
        if KIND == CAUCHY:
            a = (weight_i[:, None] + weight_j[None, :]) / u
        else:
            near_j = tl.load(near + j, mask=there, other=0.0)
            a = tl.math.exp2(outer * (y - near_i[:, None])) * weight_i[:, None]
            a += tl.math.exp2(outer * (y - near_j[None, :])) * weight_j[None, :]
        if KIND != GAUSSIAN:
            a = a / u
        if is_special(first_row, first_column, rows, period, BLOCK_M, BLOCK_N):
            a = tl.where(counts(i, j, rows, period), a, 0.0)
        moment += tl.sum(a * d2, 1)
        p, q, to = points + i, points + j, received + i
        for _ in range(0, width):
            difference = tl.load(p, mask=here, other=0.0)[:, None] - tl.load(q, mask=there, other=0.0)[None, :]
            before = tl.load(to, mask=here & (first_column > 0), other=0.0)
            tl.store(to, before + tl.sum(a * difference, 1), mask=here)
            p += rows
            q += rows
            to += rows
        # the next tile reads what other threads of this program have just written
        tl.debug_barrier()
    tl.store(moments + i, moment, mask=here)


def point_sums(p: Points, neg: Tensor, low: Tensor) -> None:
    forward[_grid(p)](
        p.z, p.scale, p.multiplier, p.dof, neg, low, p.rows, p.period, p.width, **_constants(p), **_tile(p)
    )


def point_gradients(p: Points, neg: Tensor, low: Tensor, dneg: Tensor, received: Tensor, moments: Tensor) -> None:
    near, weight = p.empty(p.rows), p.empty(p.rows)
    factors = p.scale, p.multiplier, p.dof
    weigh[(triton.cdiv(p.rows, VECTOR["BLOCK"]),)](
        neg, low, dneg, *factors, near, weight, p.rows, KIND=p.falloff, **VECTOR
    )
    backward[_grid(p)](
        p.z, *factors, near, weight, received, moments, p.rows, p.period, p.width, **_constants(p), **_tile(p)
    )


def _tile(p: Points) -> dict[str, Any]:
    return TILE_DOUBLE if p.dtype == torch.float64 else TILE


def _grid(p: Points) -> tuple[int]:
    return (triton.cdiv(p.rows, _tile(p)["BLOCK_M"]),)


def _constants(p: Points) -> dict[str, Any]:
    return {"KIND": p.falloff, "WIDTH": p.width if p.width <= UNROLLED else 0}
