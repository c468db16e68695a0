"""Cosines of paired rows: both read once forward, once or twice backward where a row exceeds a block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.triton_kernels.streams import on_device, rows_of, streamed_rows


@triton.jit
def at_least(norm, EPS: tl.constexpr):
    """max(norm, EPS), but NaN for NaN."""
    eps = tl.full(norm.shape, EPS, norm.dtype)  # a plain number would go through float32
    return tl.where(norm < eps, eps, norm)


@triton.jit
def forward(
    x, y, value, x_norm, y_norm, stride_x, stride_y, rows, width,
    EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = value.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    xx = tl.zeros([ROWS], DTYPE)
    yy = tl.zeros([ROWS], DTYPE)
    xy = tl.zeros([ROWS], DTYPE)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (row < rows)[:, None] & (d < width)[None, :]
        a = tl.load(x + (row.to(tl.int64)[:, None] * stride_x + d[None, :]), mask=inside, other=0.0).to(DTYPE)
        b = tl.load(y + (row.to(tl.int64)[:, None] * stride_y + d[None, :]), mask=inside, other=0.0).to(DTYPE)
        xx += tl.sum(a * a, 1)
        yy += tl.sum(b * b, 1)
        xy += tl.sum(a * b, 1)
    nx, ny = tl.sqrt(xx), tl.sqrt(yy)
    # one division after the other: the product of the norms may leave the range of float32
    cosine = xy / at_least(nx, EPS) / at_least(ny, EPS)
    tl.store(value + row, cosine, mask=row < rows)
    tl.store(x_norm + row, nx, mask=row < rows)
    tl.store(y_norm + row, ny, mask=row < rows)


@triton.jit
def gradient(g, cosine, a, norm_a, b, norm_b, EPS: tl.constexpr, LARGEST: tl.constexpr):
    """``g`` times the cosine's gradient by ``a``; a norm below EPS counts as EPS and has none of its own."""
    by_a, by_b = at_least(norm_a, EPS)[:, None], at_least(norm_b, EPS)[:, None]
    held = by_a > norm_a[:, None]
    d = g[:, None] / by_a * (b / by_b - tl.where(held, 0.0, cosine[:, None]) * (a / by_a))
    if LARGEST is not None:  # of a row of zeros: finite in float32, and kept so in what is narrower
        d = tl.where(held & (tl.abs(d) > LARGEST), tl.where(d > 0, LARGEST, -LARGEST), d)
    return d


@triton.jit
def backward(
    dvalue, x, y, dx, dy, value, x_norm, y_norm, stride_x, stride_y, rows, width,
    EPS: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = value.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    there = row < rows
    g = tl.load(dvalue + row, mask=there, other=0.0)
    cosine = tl.load(value + row, mask=there, other=0.0)
    nx = tl.load(x_norm + row, mask=there, other=1.0)
    ny = tl.load(y_norm + row, mask=there, other=1.0)
    inside = there[:, None] & (d < width)[None, :]
    a = tl.load(x + (row.to(tl.int64)[:, None] * stride_x + d[None, :]), mask=inside, other=0.0).to(DTYPE)
    b = tl.load(y + (row.to(tl.int64)[:, None] * stride_y + d[None, :]), mask=inside, other=0.0).to(DTYPE)
    at = row.to(tl.int64)[:, None] * width + d[None, :]
    if dx is not None:
        tl.store(dx + at, gradient(g, cosine, a, nx, b, ny, EPS, LARGEST).to(dx.dtype.element_ty), mask=inside)
    if dy is not None:
        tl.store(dy + at, gradient(g, cosine, b, ny, a, nx, EPS, LARGEST).to(dy.dtype.element_ty), mask=inside)


def cosine(x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, y = rows_of(x), rows_of(y)
    count, width = x.shape
    value = torch.empty(count, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    x_norm, y_norm = torch.empty_like(value), torch.empty_like(value)
    blocks = streamed_rows(width)
    with on_device(x):
        forward[(triton.cdiv(count, blocks["ROWS"]),)](
            x, y, value, x_norm, y_norm, x.stride(0), y.stride(0), count, width, EPS=eps, **blocks
        )
    return value, x_norm, y_norm


def cosine_backward(
    dvalue: Tensor, x: Tensor, y: Tensor, value: Tensor, x_norm: Tensor, y_norm: Tensor, eps: float,
    want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, y = rows_of(x), rows_of(y)
    count, width = x.shape
    dx, dy = (torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device) for want in (want_x, want_y))
    blocks = streamed_rows(width)
    largest = torch.finfo(x.dtype).max if x.dtype in (torch.bfloat16, torch.float16) else None
    with on_device(x):
        backward[(triton.cdiv(count, blocks["ROWS"]), triton.cdiv(width, blocks["BLOCK_D"]))](
            dvalue.contiguous(), x, y, dx if want_x else None, dy if want_y else None, value, x_norm, y_norm,
            x.stride(0), y.stride(0), count, width, EPS=eps, LARGEST=largest, **blocks,
        )  # fmt: skip
    return dx, dy
