"""What all launches share: the operand rows of a call, and how work is split. Nothing here, nor in the launches
themselves, reads the device, so a CUDA graph can hold all of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.device import architecture
from ssl_kernels.backends.gpu.kernels import DOUBLE, HALF, SPLIT, Grid, Kernels, Tile

# Rows are padded with zeros to whole tiles of every kernel, so that no load of operands needs a mask.
ROW_MULTIPLE = 256

# Programs that run at a time, two on each of 132 multiprocessors. Not read from the device, so that one problem has the
# same bits on every GPU.
PROGRAMS = 264

# More inputs than this are stacked by a copy first: each costs every row one load that is switched off.
MAX_INPUTS = 8


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


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
        self.padded = cdiv(self.rows, ROW_MULTIPLE) * ROW_MULTIPLE
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
    rows, prepared by one launch. ``step`` says which entries are positives: in a set against itself rows a multiple of
    it apart are of one sample; of two sets row ``i`` has the column ``i + step``, none where that is past the last."""

    def __init__(
        self, kernels: Kernels, scale: Tensor | None, multiplier: float, step: int, normalize: bool,
        x: Sequence[Tensor], y: Sequence[Tensor] | None = None, *, precision: str | None = None,
    ) -> None:  # fmt: skip
        """``precision``: of float32, as torch names it; by default what torch is set to."""
        self.kernels = kernels
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

        self.operands = _operands(x[0].dtype, precision or torch.get_float32_matmul_precision())
        self.pieces = 2 if self.operands == SPLIT else 1
        self.padded_width = kernels.padded_width(self.width)
        self.normalize = normalize
        self._prepare(torch.float64 if double else torch.float16, normalize or double)

    def _prepare(self, dtype: torch.dtype, whole: bool) -> None:
        """``whole``: no row is divided by a factor."""
        padded = sum(side.padded for side in self.sides)
        self.low_offset = padded * self.padded_width
        units = self.empty(self.pieces * self.low_offset, dtype=dtype)
        factors = None if whole else self.empty(padded)
        for side in self.sides:
            side.units = units[side.first * self.padded_width :]
            side.factors = None if factors is None else factors[side.first :]
        self.kernels.prepare(self, units, factors)

    def find_largest(self) -> None:
        """What sums of rows that are not normalised need: the largest factor of each side."""
        if self.x.factors is not None:
            largest = self.empty(2)
            self.kernels.largest_factors(self, largest)
            for k, side in enumerate(self.sides):
                side.largest = largest[k:]

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def grid(self, x: Side, y: Side, tile: Tile) -> tuple[Grid, int]:
        """(blocks of rows, spans of columns, pieces of the width) of a sweep that keeps rows, and a span's columns."""
        row_blocks = cdiv(x.rows, tile.BLOCK_M)
        pieces = cdiv(self.padded_width, tile.BLOCK_D or self.padded_width)
        column_tiles = cdiv(y.rows, tile.BLOCK_N)
        at_a_time = cdiv(PROGRAMS, 2) if tile.alone else PROGRAMS
        span = cdiv(column_tiles, spans(row_blocks * pieces, column_tiles, at_a_time)) * tile.BLOCK_N
        return (row_blocks, cdiv(y.rows, span), pieces), span


@lru_cache(maxsize=4096)
def spans(programs: int, column_tiles: int, at_a_time: int) -> int:
    """In how many spans to split the columns, so that the last round of programs leaves little of the chip idle.

    One round and a bit takes as long as two: 313 programs (M = 20,000) keep it busy for 59 % of the time, three
    times as many for 89 %. At most eight rounds: the sums of all spans then take no more than those of M = 135,168 do.
    """
    most = max(1, min(column_tiles, 8 * at_a_time // programs))
    busy = {s: s * programs / (cdiv(s * programs, at_a_time) * at_a_time) for s in range(1, most + 1)}
    return max(busy, key=lambda s: (busy[s], -s))


def _operands(dtype: torch.dtype, precision: str) -> str:
    """float32 is exact by default (two float16 an entry); "high" and "medium" give it one, which is TF32's accuracy."""
    if dtype == torch.float64:
        return DOUBLE
    if dtype == torch.float32 and precision == "highest":
        return SPLIT
    return HALF
