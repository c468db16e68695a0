"""The passes over a matrix, launched: what the operations on one set of embeddings and on two are made of.

Each takes the sides that stand for rows and for columns, so that a pass for the columns is one with the two exchanged
(and ``step`` negated).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ssl_kernels.backends.triton_kernels import backward, forward, launch, tiles
from ssl_kernels.backends.triton_kernels.launch import ROW_MULTIPLE, Problem, Side

# Groups of rows, and of columns, in the forward: their partial sums and maxima take 128 floats a row, as an embedding
# of D = 128, and the 2,080 pairs of 64 groups fill 132 multiprocessors eight times over, two programs each. More only
# where the other side has so few that the machine would idle.
MAX_GROUPS = 64


def sum_negatives(p: Problem, columns: bool = False) -> tuple[Tensor, Tensor | None]:
    """``[sums or maxima, group of the other side, padded row]`` of the rows and, if asked, of the columns."""
    x, y = p.x, p.y
    tile = tiles.tile("forward" if x is y else "cross", p.operands, p.padded_width, p.arch)
    x_group, y_group = _group(x.rows, y.rows), _group(y.rows, x.rows)
    x_groups, y_groups = triton.cdiv(x.rows, x_group), triton.cdiv(y.rows, y_group)
    x_sums = p.empty(2, y_groups, x.padded)
    y_sums = x_sums if x is y else p.empty(2, x_groups, y.padded) if columns else None
    blocks = tile.arguments()
    del blocks["BLOCK_D"]
    forward.sweep[(y_groups, x_groups)](
        x.units, y.units, x.factors, y.factors, *p.logits, x_sums[0], None if y_sums is None else y_sums[0],
        x_sums[1], None if y_sums is None else y_sums[1], x.rows, y.rows, p.step, x_group, y_group,
        x.padded, y.padded, p.low_offset, **p.kind, **p.rule, **blocks,
    )  # fmt: skip
    return x_sums, y_sums


def _group(rows: int, others: int) -> int:
    """How many rows make a group, against a side of ``others``."""
    most = max(MAX_GROUPS, 4 * launch.PROGRAMS // min(MAX_GROUPS, triton.cdiv(others, ROW_MULTIPLE)))
    return triton.cdiv(triton.cdiv(rows, most), ROW_MULTIPLE) * ROW_MULTIPLE


def combine(
    p: Problem, x: Side, y: Side, step: int, sums: Tensor, pos: Tensor,
    received: Tensor | None = None, mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``neg``, ``pos`` and ``top`` of the rows of ``x``; their ``mean`` where columns were received."""
    neg, top = p.empty(x.rows), p.empty(x.rows)
    by_row = tiles.rows_of_spans(p.by_row, x.rows, 0 if received is None else len(received), launch.PROGRAMS)
    forward.combine[(triton.cdiv(x.rows, by_row["ROWS"]),)](
        x.units, y.units, x.factors, y.factors, y.largest, *p.logits, sums[0], sums[1], received,
        neg, pos, top, mean, x.rows, y.rows, step, sums.shape[1], x.padded, p.low_offset, p.width,
        GROUPS=MAX_GROUPS, **p.kind, **p.rule, **by_row,
    )  # fmt: skip
    return neg, pos, top


def weigh(
    p: Problem, of_x: tuple[Tensor, Tensor, Tensor], of_y: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What rows and columns put into G, from their ``(neg, top, dneg)``, and the unit it is in."""
    x_weights = p.empty(3, p.x.padded)
    y_weights = None if of_y is None else p.empty(3, p.y.padded)
    unit = p.empty(1)
    blocks = triton.cdiv(max(side.padded for side in p.sides), tiles.VECTOR["BLOCK"])
    backward.weigh[(blocks, 1 if of_y is None else 2)](
        *_contiguous(of_x), *_contiguous(of_y or (None, None, None)), *p.logits, x_weights, y_weights, unit,
        p.x.rows, p.y.rows, p.x.padded, p.y.padded, NORMALIZE=p.kind["NORMALIZE"], **tiles.VECTOR,
    )  # fmt: skip
    return x_weights, y_weights, unit


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def receive(p: Problem, x: Side, y: Side, step: int, x_weights: Tensor | None, y_weights: Tensor | None) -> Tensor:
    """``[span of columns, padded row, padded width]``: what the rows of ``x`` receive from those of ``y``."""
    tile = tiles.tile("backward", p.operands, p.padded_width, p.arch)
    grid, span = p.grid(x, y, tile)
    received = p.empty(grid[1], x.padded, p.padded_width)
    backward.sweep[grid](
        x.units, y.units, x.factors, y.factors, y.largest, *p.logits, x_weights, y_weights, received,
        x.rows, y.rows, step, span, x.padded, y.padded, p.low_offset, **p.kind, **p.rule, **tile.arguments(),
    )  # fmt: skip
    return received


def finish(
    p: Problem, x: Side, y: Side, step: int, received: Tensor, unit: Tensor | None,
    dpos: Tensor | None, y_dpos: Tensor | None = None, dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """The gradients of the inputs of ``x``, and each program's part of the scale's gradient."""
    dxs = tuple(torch.empty(t.shape, dtype=dtype or t.dtype, device=t.device) for t in x.xs)
    by_row = tiles.rows_of_spans(p.by_row, x.rows, len(received), launch.PROGRAMS)
    programs = triton.cdiv(x.rows, by_row["ROWS"])
    along = p.empty(programs)
    backward.finish[(programs,)](
        x.xs, x.strides, x.counts, x.firsts, dxs, y.units, y.factors, y.largest, *p.logits, received, unit,
        *_contiguous((dpos, y_dpos)), along, x.rows, y.rows, step, len(received), x.padded, p.low_offset, p.width,
        **p.kind, **p.rule, **by_row,
    )  # fmt: skip
    return x.per_input(dxs), along


def add_scale(p: Problem, along: Tensor) -> Tensor:
    scale, multiplier = p.logits
    if scale is None:
        return torch.zeros((), dtype=p.dtype, device=p.device)
    dscale = torch.empty_like(scale)
    backward.sum_scale[(1,)](along, multiplier, dscale, len(along), **tiles.VECTOR)
    return dscale
