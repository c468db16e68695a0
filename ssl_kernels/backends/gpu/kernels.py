"""What a GPU backend brings: its tiles, and a launch for every pass.

Buffers are the same everywhere. Operand rows, which every kernel but ``prepare`` reads, are float16 times 2^10 (two of
them for a float32 that stays exact) or float64, ``[pieces, padded rows, padded width]``, laid out as the backend likes;
results are float32, or float64 for float64, as ``Problem.empty`` makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from ssl_kernels.backends.gpu.launch import Problem, Side

HALF, SPLIT, DOUBLE = "half", "split", "double"

Three = tuple[Tensor, Tensor, Tensor]
Grid = tuple[int, int, int]  # blocks of rows, spans of columns, pieces of the width


class Tile(Protocol):
    """Rows and columns that a program multiplies at a time, and the width of its result."""

    @property
    def BLOCK_M(self) -> int: ...
    @property
    def BLOCK_N(self) -> int: ...
    @property
    def BLOCK_D(self) -> int | None: ...
    @property
    def alone(self) -> bool:
        """Whether a program has a multiprocessor to itself; otherwise two share one."""
        ...


T = TypeVar("T", bound=Tile)


class Kernels(Protocol[T]):
    """``step`` and the roles of ``x`` and ``y`` are a pass's own: one for the columns is that of the rows with the two
    exchanged and ``step`` negated."""

    def padded_width(self, width: int) -> int: ...

    def tile(self, kernel: str, operands: str, width: int, arch: int) -> T:
        """Of the sweeps ``forward`` (a set against itself), ``cross`` (two), ``backward``, ``attend``, ``softplus``,
        and ``value``, the softplus for nobody to receive anything."""

    def prepare(self, p: Problem, units: Tensor, factors: Tensor | None) -> None:
        """Operand rows of all inputs; ``factors`` are the powers of two that rows off the sphere were divided by."""

    def largest_factors(self, p: Problem, largest: Tensor) -> None: ...

    def forward(self, p: Problem, tile: T, x_sums: Tensor, y_sums: Tensor | None, x_group: int, y_group: int) -> None:
        """``[sums or maxima, group of the other side, padded row]``; ``y_sums``: ``x_sums`` in a set against itself."""

    def combine(
        self, p: Problem, x: Side, y: Side, step: int, sums: Tensor, results: Three, received: Tensor | None,
        mean: Tensor | None,
    ) -> None:  # fmt: skip
        """``neg``, ``pos`` and ``top`` of the rows of ``x``, and their ``mean`` where columns were received."""

    def weigh(
        self, p: Problem, of_x: Three, of_y: Three | None, x_weights: Tensor, y_weights: Tensor | None, unit: Tensor
    ) -> None:
        """What rows and columns put into G, from their ``(neg, top, dneg)``, and the unit it is in."""

    def backward(
        self, p: Problem, x: Side, y: Side, step: int, tile: T, grid: Grid, span: int, x_weights: Tensor | None,
        y_weights: Tensor | None, received: Tensor,
    ) -> None:  # fmt: skip
        """``received[span of columns, padded row, padded width]``."""

    def backward_both(self, p: Problem, x_weights: Tensor, y_weights: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What the rows of ``x`` and those of ``y`` receive, where that takes less than one sweep for each."""

    def finish(
        self, p: Problem, x: Side, y: Side, step: int, received: Tensor, unit: Tensor | None, dpos: Tensor | None,
        y_dpos: Tensor | None, dxs: tuple[Tensor, ...],
    ) -> Tensor:  # fmt: skip
        """Writes the gradients of the inputs of ``x``; each program's part of the scale's gradient."""

    def sum_scale(self, p: Problem, along: Tensor, dscale: Tensor) -> None: ...

    def attend(self, p: Problem, tile: T, grid: Grid, span: int, sums: Tensor, received: Tensor) -> None:
        """``[sums or maxima, span, padded row]`` and ``received[span, padded row, padded width]``."""

    def softplus(
        self, p: Problem, x: Side, y: Side, step: int, tile: T, grid: Grid, span: int, bias: Tensor | None,
        sums: Tensor | None, received: Tensor | None,
    ) -> None:  # fmt: skip
        """Each program's part ``[value or slope, program]``, and what rows receive; either may be None."""

    def softplus_both(self, p: Problem, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The parts ``[value or slope, program]``, what the rows of ``x`` and those of ``y`` receive, and the unit
        that is in, where that takes less than one sweep for each."""

    def add_up(
        self, p: Problem, sums: Tensor, along: Tensor | None, value: Tensor, dscale: Tensor, dbias: Tensor
    ) -> None: ...
