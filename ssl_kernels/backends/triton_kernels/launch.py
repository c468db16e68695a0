"""The launches: buffers, grids and constants. Nothing here reads the device, so a CUDA graph can hold all of it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from ssl_kernels.backends.triton_kernels import backward, forward, rows, tiles

# Groups of rows in the forward: their partial sums (and maxima) take 128 floats a row, an embedding of D = 128,
# and the 2,080 pairs of 64 groups fill 132 multiprocessors eight times over, two programs each.
MAX_GROUPS = 64

# Rows are padded with zeros to whole tiles of every kernel, so that no load of operands needs a mask.
ROW_MULTIPLE = 128

# Programs that keep the chip busy (two on each of 132 multiprocessors): with fewer row blocks, columns are split.
ENOUGH_PROGRAMS = 264

# More views than this are stacked by a copy first: each costs every row one load that is switched off.
MAX_VIEWS = 8


class _Problem:
    """What forward and backward share: the views as kernel arguments and the operand rows made from them."""

    def __init__(self, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int, normalize: bool) -> None:
        views = [t for t in x if len(t)]
        if len(views) > MAX_VIEWS:
            views = [torch.cat(views)]
        self.xs = tuple(t if t.stride(1) == 1 else t.contiguous() for t in views)
        self.strides = tuple(t.stride(0) for t in self.xs)
        self.counts = tuple(len(t) for t in self.xs)
        self.rows = sum(self.counts)
        self.width = x[0].shape[1]
        self.padded_width = tiles.padded_width(self.width)
        self.padded_rows = triton.cdiv(self.rows, ROW_MULTIPLE) * ROW_MULTIPLE
        self.dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32
        self.operands = _operands(x[0].dtype)
        pieces = 2 if self.operands == tiles.SPLIT else 1
        self.low_offset = self.padded_rows * self.padded_width
        operand_dtype = torch.float64 if self.operands == tiles.DOUBLE else torch.float16
        self.units = self.empty(pieces * self.low_offset, dtype=operand_dtype)
        powers = not normalize and self.operands != tiles.DOUBLE
        self.factors = self.empty(self.padded_rows) if powers else None
        self.logits = (scale, multiplier)
        self.shape: dict[str, Any] = {"NORMALIZE": normalize, "PIECES": pieces, "WIDTH": self.padded_width}
        # whole rows in one program for the kernels that go row by row, about 4,096 entries each
        self.row_block = triton.next_power_of_2(self.padded_width)
        self.row_tile = {"ROWS": min(32, max(1, 4096 // self.row_block)), "BLOCK_D": self.row_block}
        self.period = period
        rows.prepare[(triton.cdiv(self.padded_rows, self.row_tile["ROWS"]),)](
            self.xs, self.strides, self.counts, self.units, self.factors, self.low_offset, self.width,
            **self.shape, **self.row_tile, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.xs[0].device)


def self_lse(
    x: list[Tensor], scale: Tensor | None, multiplier: float, period: int, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with _on_device(x[0]):
        p = _Problem(x, scale, multiplier, period, normalize)
        tile = tiles.tile("forward", p.operands, p.padded_width)
        group = triton.cdiv(triton.cdiv(p.rows, MAX_GROUPS), ROW_MULTIPLE) * ROW_MULTIPLE
        groups = triton.cdiv(p.rows, group)
        sums = p.empty(2, groups, p.padded_rows)
        top_offset = groups * p.padded_rows
        forward.sweep[(groups, groups)](
            p.units, p.factors, *p.logits, sums, p.rows, period, group, p.padded_rows, p.low_offset, top_offset,
            **p.shape, **_blocks(tile, "BLOCK_D"),
        )  # fmt: skip
        neg = p.empty(p.rows)
        top = p.empty(p.rows)
        pos = p.empty(p.rows // period - 1, p.rows)
        forward.combine[(triton.cdiv(p.rows, p.row_tile["ROWS"]),)](
            p.units, p.factors, *p.logits, sums, neg, pos, top, p.rows, period, groups, p.padded_rows,
            p.low_offset, top_offset, **p.shape, **p.row_tile, MAX_GROUPS=MAX_GROUPS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return neg, pos, top


def self_lse_backward(
    dneg: Tensor, dpos: Tensor, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int,
    normalize: bool, neg: Tensor, top: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    with _on_device(x[0]):
        p = _Problem(x, scale, multiplier, period, normalize)
        weights = p.empty(3, p.padded_rows)
        unit = p.empty(1)
        backward.weigh[(triton.cdiv(p.padded_rows, 1024),)](
            neg, top, dneg.contiguous(), p.factors, *p.logits, weights, unit, p.rows, p.padded_rows,
            NORMALIZE=normalize, BLOCK=1024, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip

        tile = tiles.tile("backward", p.operands, p.padded_width)
        row_blocks = triton.cdiv(p.rows, tile.BLOCK_M)
        chunks = triton.cdiv(p.padded_width, tile.BLOCK_D)
        column_tiles = triton.cdiv(p.rows, tile.BLOCK_N)
        spans = min(column_tiles, triton.cdiv(ENOUGH_PROGRAMS, row_blocks * chunks))
        span = triton.cdiv(column_tiles, spans) * tile.BLOCK_N
        spans = triton.cdiv(p.rows, span)
        received = p.empty(spans, p.padded_rows, p.padded_width)
        backward.sweep[(row_blocks, spans, chunks)](
            p.units, p.factors, *p.logits, weights, received, p.rows, period, span, p.padded_rows, p.low_offset,
            **p.shape, **_blocks(tile),
        )  # fmt: skip

        dx = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x]
        stacked = len(p.xs) == 1 and len(x) > 1
        dxs = (torch.empty_like(p.xs[0], memory_format=torch.contiguous_format),) if stacked else None
        dxs = dxs or tuple(t for t in dx if len(t))
        programs = triton.cdiv(p.rows, p.row_tile["ROWS"])
        by_program = p.empty(programs)
        backward.finish[(programs,)](
            p.xs, p.strides, p.counts, dxs, p.units, p.factors, *p.logits, received, unit, dpos.contiguous(),
            by_program, p.rows, period, spans, p.padded_rows, p.low_offset, p.width,
            **p.shape, **p.row_tile, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        if stacked:
            dx = list(dxs[0].split([len(t) for t in x]))
        if scale is None:
            return dx, torch.zeros((), dtype=p.dtype, device=x[0].device)
        dscale = torch.empty_like(scale)
        backward.sum_scale[(1,)](
            by_program, multiplier, dscale, programs, BLOCK=1024, num_warps=4, enable_fp_fusion=True
        )  # fmt: skip
    return dx, dscale


def _operands(dtype: torch.dtype) -> str:
    """float32 is exact by default (two float16 an entry); "high" and "medium" give it one, which is TF32's accuracy."""
    if dtype == torch.float64:
        return tiles.DOUBLE
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return tiles.SPLIT
    return tiles.HALF


def _blocks(tile: tiles.Tile, *unused: str) -> dict[str, Any]:
    blocks = {name: size for name, size in tile._asdict().items() if name not in unused}
    return {**blocks, "num_stages": tile.STAGES, "enable_fp_fusion": True}


def _on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
