"""What the passes of ``backends.gpu`` ask of a backend, as launches of the Triton kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_kernels.backends.gpu import launch, passes
from ssl_kernels.backends.gpu.kernels import Grid, Three
from ssl_kernels.backends.gpu.launch import Problem, Side, cdiv
from ssl_kernels.backends.triton_kernels import attend as attending
from ssl_kernels.backends.triton_kernels import backward as receiving
from ssl_kernels.backends.triton_kernels import forward as summing
from ssl_kernels.backends.triton_kernels import rows, tiles
from ssl_kernels.backends.triton_kernels import softplus as pairing
from ssl_kernels.backends.triton_kernels.tiles import Tile, padded_width, tile

__all__ = [
    "add_up",
    "attend",
    "backward",
    "backward_both",
    "combine",
    "finish",
    "forward",
    "largest_factors",
    "padded_width",
    "prepare",
    "softplus",
    "softplus_both",
    "sum_scale",
    "tile",
    "weigh",
]


def prepare(p: Problem, units: Tensor, factors: Tensor | None) -> None:
    inputs: list[tuple[Any, ...]] = [(), (), (), ()]
    for side in p.sides:
        firsts = tuple(side.first + first for first in side.firsts)
        inputs = [a + b for a, b in zip(inputs, (side.xs, side.strides, side.counts, firsts), strict=True)]
    by_row = _by_row(p)
    padded = sum(side.padded for side in p.sides)
    rows.prepare[(cdiv(padded, by_row["ROWS"]),)](*inputs, units, factors, p.low_offset, p.width, **_kind(p), **by_row)


def largest_factors(p: Problem, largest: Tensor) -> None:
    rows.largest_factors[(len(p.sides),)](p.x.factors, p.y.factors, largest, p.x.rows, p.y.rows, **tiles.VECTOR)


def forward(p: Problem, tile: Tile, x_sums: Tensor, y_sums: Tensor | None, x_group: int, y_group: int) -> None:
    x, y = p.x, p.y
    blocks = tile.arguments()
    del blocks["BLOCK_D"]
    summing.sweep[(cdiv(y.rows, y_group), cdiv(x.rows, x_group))](
        x.units, y.units, x.factors, y.factors, *p.logits, x_sums[0], None if y_sums is None else y_sums[0],
        x_sums[1], None if y_sums is None else y_sums[1], x.rows, y.rows, p.step, x_group, y_group,
        x.padded, y.padded, p.low_offset, **_kind(p), **_rule(p), **blocks,
    )  # fmt: skip


def combine(
    p: Problem, x: Side, y: Side, step: int, sums: Tensor, results: Three, received: Tensor | None, mean: Tensor | None
) -> None:
    by_row = tiles.rows_of_spans(_by_row(p), x.rows, 0 if received is None else len(received), launch.PROGRAMS)
    summing.combine[(cdiv(x.rows, by_row["ROWS"]),)](
        x.units, y.units, x.factors, y.factors, y.largest, *p.logits, sums[0], sums[1], received,
        *results, mean, x.rows, y.rows, step, sums.shape[1], x.padded, p.low_offset, p.width,
        GROUPS=passes.MAX_GROUPS, **_kind(p), **_rule(p), **by_row,
    )  # fmt: skip


def weigh(
    p: Problem, of_x: Three, of_y: Three | None, x_weights: Tensor, y_weights: Tensor | None, unit: Tensor
) -> None:
    blocks = cdiv(max(side.padded for side in p.sides), tiles.VECTOR["BLOCK"])
    receiving.weigh[(blocks, 1 if of_y is None else 2)](
        *of_x, *(of_y or (None, None, None)), *p.logits, x_weights, y_weights, unit,
        p.x.rows, p.y.rows, p.x.padded, p.y.padded, NORMALIZE=p.normalize, **tiles.VECTOR,
    )  # fmt: skip


def backward(
    p: Problem, x: Side, y: Side, step: int, tile: Tile, grid: Grid, span: int, x_weights: Tensor | None,
    y_weights: Tensor | None, received: Tensor,
) -> None:  # fmt: skip
    receiving.sweep[grid](
        x.units, y.units, x.factors, y.factors, y.largest, *p.logits, x_weights, y_weights, received,
        x.rows, y.rows, step, span, x.padded, y.padded, p.low_offset, **_kind(p), **_rule(p), **tile.arguments(),
    )  # fmt: skip


def backward_both(p: Problem, x_weights: Tensor, y_weights: Tensor | None) -> None:
    """Never less than a sweep for each."""


def finish(
    p: Problem, x: Side, y: Side, step: int, received: Tensor, unit: Tensor | None, dpos: Tensor | None,
    y_dpos: Tensor | None, dxs: tuple[Tensor, ...],
) -> Tensor:  # fmt: skip
    by_row = tiles.rows_of_spans(_by_row(p), x.rows, len(received), launch.PROGRAMS)
    along = p.empty(cdiv(x.rows, by_row["ROWS"]))
    receiving.finish[(len(along),)](
        x.xs, x.strides, x.counts, x.firsts, dxs, y.units, y.factors, y.largest, *p.logits, received, unit,
        dpos, y_dpos, along, x.rows, y.rows, step, len(received), x.padded, p.low_offset, p.width,
        **_kind(p), **_rule(p), **by_row,
    )  # fmt: skip
    return along


def sum_scale(p: Problem, along: Tensor, dscale: Tensor) -> None:
    receiving.sum_scale[(1,)](along, p.logits[1], dscale, len(along), **tiles.VECTOR)


def attend(p: Problem, tile: Tile, grid: Grid, span: int, sums: Tensor, received: Tensor) -> None:
    x, y = p.x, p.y
    attending.sweep[grid](
        x.units, y.units, x.factors, y.factors, y.largest, *p.logits, sums[0], sums[1], received,
        x.rows, y.rows, p.step, span, x.padded, p.low_offset, **_kind(p), **tile.arguments(),
    )  # fmt: skip


def softplus(
    p: Problem, x: Side, y: Side, step: int, tile: Tile, grid: Grid, span: int, bias: Tensor | None,
    sums: Tensor | None, received: Tensor | None,
) -> None:  # fmt: skip
    scale, multiplier = p.logits
    pairing.sweep[grid](
        x.units, y.units, x.factors, y.factors, y.largest, scale, bias, multiplier, sums, received,
        x.rows, y.rows, step, span, x.padded, p.low_offset,
        PIECES=p.pieces, WIDTH=p.padded_width, **tile.arguments(),
    )  # fmt: skip


def softplus_both(p: Problem, bias: Tensor | None) -> None:
    """Never less than a sweep for each."""


def add_up(p: Problem, sums: Tensor, along: Tensor | None, value: Tensor, dscale: Tensor, dbias: Tensor) -> None:
    pairing.add_up[(1,)](
        sums, along, p.logits[1], value, dscale, dbias, sums.shape[1], 0 if along is None else len(along),
        **tiles.VECTOR,
    )  # fmt: skip


def _kind(p: Problem) -> dict[str, Any]:
    return {"NORMALIZE": p.normalize, "PIECES": p.pieces, "WIDTH": p.padded_width}


def _rule(p: Problem) -> dict[str, Any]:
    return {"SELF": p.x is p.y}


def _by_row(p: Problem) -> dict[str, Any]:
    return tiles.whole_rows(p.padded_width, p.operands)
