"""What all launches share: the operand rows of a call, and how work is split. Nothing here, nor in the launches
themselves, reads the device, so a CUDA graph can hold all of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ssl_kernels.backends.triton_kernels import rows, tiles

# Rows are padded with zeros to whole tiles of every kernel, so that no load of operands needs a mask.
ROW_MULTIPLE = 128

# Programs that run at a time, two on each of 132 multiprocessors. Not read from the device, so that one problem has the
# same bits on every GPU.
PROGRAMS = 264

# More inputs than this are stacked by a copy first: each costs every row one load that is switched off.
MAX_INPUTS = 8


class Side:
    """One set of embeddings: its inputs as kernel arguments, and where its operand rows are."""

    def __init__(self, x: Sequence[Tensor], first: int) -> None:
        self.inputs = x
        parts = [t for t in x if len(t)]
        if len(parts) > MAX_INPUTS:
            parts = [torch.cat(parts)]
        self.xs = tuple(t if t.stride(1) == 1 else t.contiguous() for t in parts)
        self.strides = tuple(t.stride(0) for t in self.xs)
        self.counts = tuple(len(t) for t in self.xs)
        self.firsts = tuple(sum(self.counts[:k]) for k in range(len(parts)))
        self.rows = sum(self.counts)
        self.padded = triton.cdiv(self.rows, ROW_MULTIPLE) * ROW_MULTIPLE
        self.first = first  # row of the buffer of both sides
        self.units: Tensor | None = None
        self.factors: Tensor | None = None
        self.largest: Tensor | None = None

    def per_input(self, dxs: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the stacked inputs handed back one by one, and empty ones for empty inputs."""
        if len(dxs) == 1 and len(self.inputs) > 1:
            return [part.clone() for part in dxs[0].split([len(t) for t in self.inputs])]
        parts = iter(dxs)
        return [next(parts) if len(t) else torch.empty_like(t) for t in self.inputs]


class Problem:
    """Rows ``x`` and columns ``y`` of a matrix, one :class:`Side` where a set stands against itself, and their operand
    rows, prepared by one launch. ``step`` is the rule of ``pairs``."""

    def __init__(
        self, scale: Tensor | None, multiplier: float, step: int, normalize: bool,
        x: Sequence[Tensor], y: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.x = self.y = Side(x, 0)
        self.sides = [self.x]
        if y is not None:
            self.y = Side(y, self.x.padded)
            self.sides.append(self.y)
        self.step = step
        self.logits = (scale, multiplier)
        self.width = x[0].shape[1]
        self.device = x[0].device
        self.arch = architecture(self.device)
        double = x[0].dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32

        self.operands = _operands(x[0].dtype)
        self.padded_width = tiles.padded_width(self.width)
        self.by_row = tiles.whole_rows(self.padded_width, self.operands)
        pieces = 2 if self.operands == tiles.SPLIT else 1
        self.kind: dict[str, Any] = {"NORMALIZE": normalize, "PIECES": pieces, "WIDTH": self.padded_width}
        self.rule = {"SELF": y is None}
        self._prepare(torch.float64 if double else torch.float16, normalize or double)

    def _prepare(self, dtype: torch.dtype, whole: bool) -> None:
        """``whole``: no row is divided by a factor."""
        padded = sum(side.padded for side in self.sides)
        self.low_offset = padded * self.padded_width
        units = self.empty(self.kind["PIECES"] * self.low_offset, dtype=dtype)
        factors = None if whole else self.empty(padded)
        xs: tuple[Tensor, ...] = ()
        strides: tuple[int, ...] = ()
        counts: tuple[int, ...] = ()
        firsts: tuple[int, ...] = ()
        for side in self.sides:
            side.units = units[side.first * self.padded_width :]
            side.factors = None if factors is None else factors[side.first :]
            xs, strides, counts = xs + side.xs, strides + side.strides, counts + side.counts
            firsts += tuple(side.first + first for first in side.firsts)
        rows.prepare[(triton.cdiv(padded, self.by_row["ROWS"]),)](
            xs, strides, counts, firsts, units, factors, self.low_offset, self.width, **self.kind, **self.by_row
        )

    def find_largest(self) -> None:
        """What sums of rows that are not normalised need: the largest factor of each side."""
        if self.x.factors is not None:
            largest = self.empty(2)
            rows.largest_factors[(len(self.sides),)](
                self.x.factors, self.y.factors, largest, self.x.rows, self.y.rows, **tiles.VECTOR
            )
            for k, side in enumerate(self.sides):
                side.largest = largest[k:]

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def grid(self, x: Side, y: Side, tile: tiles.Tile) -> tuple[tuple[int, int, int], int]:
        """(blocks of rows, spans of columns, pieces of the width) of a sweep that keeps rows, and a span's columns."""
        row_blocks = triton.cdiv(x.rows, tile.BLOCK_M)
        pieces = triton.cdiv(self.padded_width, tile.BLOCK_D)
        column_tiles = triton.cdiv(y.rows, tile.BLOCK_N)
        span = triton.cdiv(column_tiles, spans(row_blocks * pieces, column_tiles, PROGRAMS)) * tile.BLOCK_N
        return (row_blocks, triton.cdiv(y.rows, span), pieces), span


@lru_cache(maxsize=4096)
def spans(programs: int, column_tiles: int, at_a_time: int) -> int:
    """In how many spans to split the columns, so that the last round of programs leaves little of the chip idle.

    One round and a bit takes as long as two: 313 programs (M = 20,000) keep it busy for 59 % of the time, three
    times as many for 89 %. At most eight rounds: the sums of all spans then take no more than those of M = 135,168 do.
    """
    most = max(1, min(column_tiles, 8 * at_a_time // programs))
    busy = {s: s * programs / (triton.cdiv(s * programs, at_a_time) * at_a_time) for s in range(1, most + 1)}
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
