"""The nearest row of another set by inner product: a running maximum and where it is, rows owned by a program."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device
from ssl_kernels.backends.reference.rows import dtype_of_products

TILE: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
TILE_DOUBLE: dict[str, Any] = TILE | {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16}  # correct, not tuned


@triton.jit(do_not_specialize=["rows", "columns", "skip"])
def search(
    x, y, index, rows, columns, skip, width,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns come in order, only a larger product replaces the best, and of equals in a tile the first counts."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.full([BLOCK_M], -1, tl.int64)
    if skip is not None:
        own = i.to(tl.int64) + skip
    best = tl.full([BLOCK_M], float("-inf"), DTYPE)
    # the first candidate, where no product is larger than -infinity
    where = tl.where((own == 0) & (columns > 1), 1, 0)
    for first_column in range(0, columns, BLOCK_N):
        j = first_column + tl.arange(0, BLOCK_N)
        s = tl.zeros([BLOCK_M, BLOCK_N], DTYPE)
        for start in range(0, width, BLOCK_K):
            d = start + tl.arange(0, BLOCK_K)
            in_a = (i < rows)[:, None] & (d < width)[None, :]
            in_b = (j < columns)[:, None] & (d < width)[None, :]
            a = tl.load(x + (i.to(tl.int64)[:, None] * width + d[None, :]), mask=in_a, other=0.0)
            b = tl.load(y + (j.to(tl.int64)[:, None] * width + d[None, :]), mask=in_b, other=0.0)
            s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION, out_dtype=DTYPE)
        s = tl.where((j < columns)[None, :] & (j[None, :] != own[:, None]), s, float("-inf"))
        top = tl.max(s, 1)
        first = tl.min(tl.where(s == top[:, None], j[None, :], columns), 1)
        where = tl.where(top > best, first, where)
        best = tl.where(top > best, top, best)
    tl.store(index + i, where.to(tl.int64), mask=i < rows)


def nearest(x: Tensor, y: Tensor, skip: int | None, normalize: bool) -> Tensor:
    index = torch.empty(len(x), dtype=torch.int64, device=x.device)
    z = _rows(x, normalize)
    w = z if y is x else _rows(y, normalize)
    double = z.dtype == torch.float64
    precision, tile = ("ieee", TILE_DOUBLE) if double else ("tf32x3", TILE)
    with on_device(x):
        search[(triton.cdiv(len(x), tile["BLOCK_M"]),)](
            z, w, index, len(x), len(y), skip, x.shape[1], PRECISION=precision, **tile
        )
    return index


def _rows(x: Tensor, normalize: bool) -> Tensor:
    z = x.to(dtype_of_products(x)).contiguous()
    return F.normalize(z, dim=1, eps=1e-12) if normalize else z
