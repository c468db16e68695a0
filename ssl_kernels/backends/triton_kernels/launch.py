"""The launches: buffers, grids and constants. Nothing here reads the device, so a CUDA graph can hold all of it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from ssl_kernels.backends.triton_kernels import backward, forward, rows, tiles

# Groups of rows in the forward: their partial sums and maxima take 128 floats a row, as an embedding of D = 128, and
# the 2,080 pairs of 64 groups fill 132 multiprocessors eight times over, two programs each.
MAX_GROUPS = 64

# Rows are padded with zeros to whole tiles of every kernel, so that no load of operands needs a mask.
ROW_MULTIPLE = 128

# Programs that run at a time, two on each of 132 multiprocessors. Not read from the device, so that one problem has the
# same bits on every GPU.
PROGRAMS = 264

# More views than this are stacked by a copy first: each costs every row one load that is switched off.
MAX_VIEWS = 8


class Problem:
    """What forward and backward share: the views as kernel arguments, and the operand rows made from them."""

    def __init__(self, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int, normalize: bool) -> None:
        views = [t for t in x if len(t)]
        if len(views) > MAX_VIEWS:
            views = [torch.cat(views)]
        self.xs = tuple(t if t.stride(1) == 1 else t.contiguous() for t in views)
        self.strides = tuple(t.stride(0) for t in self.xs)
        self.counts = tuple(len(t) for t in self.xs)
        self.rows = sum(self.counts)
        self.width = x[0].shape[1]
        self.period = period
        self.logits = (scale, multiplier)
        self.dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32

        self.arch = architecture(x[0].device)

        self.padded_rows = triton.cdiv(self.rows, ROW_MULTIPLE) * ROW_MULTIPLE
        self.padded_width = tiles.padded_width(self.width)
        self.operands = _operands(x[0].dtype)
        double = self.operands == tiles.DOUBLE
        pieces = 2 if self.operands == tiles.SPLIT else 1
        self.low_offset = self.padded_rows * self.padded_width
        self.units = self.empty(pieces * self.low_offset, dtype=torch.float64 if double else torch.float16)
        self.factors = None if normalize or double else self.empty(self.padded_rows)

        self.kind: dict[str, Any] = {"NORMALIZE": normalize, "PIECES": pieces, "WIDTH": self.padded_width}
        self.by_row = tiles.whole_rows(self.padded_width, self.operands)
        rows.prepare[(triton.cdiv(self.padded_rows, self.by_row["ROWS"]),)](
            self.xs, self.strides, self.counts, self.units, self.factors, self.low_offset, self.width,
            **self.kind, **self.by_row,
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.xs[0].device)


def self_lse(
    x: list[Tensor], scale: Tensor | None, multiplier: float, period: int, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with _on_device(x[0]):
        p = Problem(x, scale, multiplier, period, normalize)
        sums = sum_negatives(p)
        groups = sums.shape[1]
        neg, top = p.empty(p.rows), p.empty(p.rows)
        pos = p.empty(p.rows // period - 1, p.rows)
        forward.combine[(triton.cdiv(p.rows, p.by_row["ROWS"]),)](
            p.units, p.factors, *p.logits, sums, neg, pos, top, p.rows, period, groups, p.padded_rows,
            p.low_offset, sums.stride(0), MAX_GROUPS=MAX_GROUPS, **p.kind, **p.by_row,
        )  # fmt: skip
    return neg, pos, top


def sum_negatives(p: Problem) -> Tensor:
    """``[sums or maxima, group, padded row]``."""
    tile = tiles.tile("forward", p.operands, p.padded_width, p.arch)
    group = triton.cdiv(triton.cdiv(p.rows, MAX_GROUPS), ROW_MULTIPLE) * ROW_MULTIPLE
    groups = triton.cdiv(p.rows, group)
    sums = p.empty(2, groups, p.padded_rows)
    blocks = tile.arguments()
    del blocks["BLOCK_D"]
    forward.sweep[(groups, groups)](
        p.units, p.factors, *p.logits, sums, p.rows, p.period, group, p.padded_rows, p.low_offset, sums.stride(0),
        **p.kind, **blocks,
    )  # fmt: skip
    return sums


def self_lse_backward(
    dneg: Tensor, dpos: Tensor, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int,
    normalize: bool, neg: Tensor, top: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    with _on_device(x[0]):
        p = Problem(x, scale, multiplier, period, normalize)
        received, unit = receive(p, dneg, neg, top)
        dxs = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in p.xs)
        programs = triton.cdiv(p.rows, p.by_row["ROWS"])
        by_program = p.empty(programs)
        backward.finish[(programs,)](
            p.xs, p.strides, p.counts, dxs, p.units, p.factors, *p.logits, received, unit, dpos.contiguous(),
            by_program, p.rows, period, len(received), p.padded_rows, p.low_offset, p.width, **p.kind, **p.by_row,
        )  # fmt: skip
        dx = _per_input(dxs, x)
        if scale is None:
            return dx, torch.zeros((), dtype=p.dtype, device=x[0].device)
        dscale = torch.empty_like(scale)
        backward.sum_scale[(1,)](by_program, multiplier, dscale, programs, **tiles.VECTOR)
    return dx, dscale


def _per_input(dxs: tuple[Tensor, ...], x: list[Tensor]) -> list[Tensor]:
    """The gradients of the stacked views handed back one by one, and empty ones for empty inputs."""
    if len(dxs) == 1 and len(x) > 1:
        return [part.clone() for part in dxs[0].split([len(t) for t in x])]
    parts = iter(dxs)
    return [next(parts) if len(t) else torch.empty_like(t) for t in x]


def receive(p: Problem, dneg: Tensor, neg: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """``[span of columns, padded row, padded width]`` and the unit it is in."""
    weights = p.empty(3, p.padded_rows)
    unit = p.empty(1)
    backward.weigh[(triton.cdiv(p.padded_rows, tiles.VECTOR["BLOCK"]),)](
        neg, top, dneg.contiguous(), p.factors, *p.logits, weights, unit, p.rows, p.padded_rows,
        NORMALIZE=p.kind["NORMALIZE"], **tiles.VECTOR,
    )  # fmt: skip

    tile = tiles.tile("backward", p.operands, p.padded_width, p.arch)
    row_blocks = triton.cdiv(p.rows, tile.BLOCK_M)
    chunks = triton.cdiv(p.padded_width, tile.BLOCK_D)
    column_tiles = triton.cdiv(p.rows, tile.BLOCK_N)
    span = triton.cdiv(column_tiles, _spans(row_blocks * chunks, column_tiles)) * tile.BLOCK_N
    spans = triton.cdiv(p.rows, span)
    received = p.empty(spans, p.padded_rows, p.padded_width)
    backward.sweep[(row_blocks, spans, chunks)](
        p.units, p.factors, *p.logits, weights, received, p.rows, p.period, span, p.padded_rows, p.low_offset,
        **p.kind, **tile.arguments(),
    )  # fmt: skip
    return received, unit


def _spans(programs: int, column_tiles: int) -> int:
    """In how many spans to split the columns, so that the last round of programs leaves little of the chip idle.

    One round and a bit takes as long as two: 313 programs (M = 20,000) keep it busy for 59 % of the time, three
    times as many for 89 %. At most eight rounds: the sums of all spans then take no more than those of M = 135,168 do.
    """
    most = max(1, min(column_tiles, 8 * PROGRAMS // programs))
    busy = {s: s * programs / (triton.cdiv(s * programs, PROGRAMS) * PROGRAMS) for s in range(1, most + 1)}
    return max(busy, key=lambda s: (busy[s], -s))


def _operands(dtype: torch.dtype) -> str:
    """float32 is exact by default (two float16 an entry); "high" and "medium" give it one, which is TF32's accuracy."""
    if dtype == torch.float64:
        return tiles.DOUBLE
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return tiles.SPLIT
    return tiles.HALF


def architecture(device: torch.device) -> int:
    """80, 90, 100 ...; interpreted, as on a Hopper."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
