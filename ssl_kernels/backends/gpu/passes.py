"""The passes over a matrix, launched: what the operations on one set of embeddings and on two are made of.

Each takes the sides that stand for rows and for columns, so that a pass for the columns is one with the two exchanged
(and ``step`` negated).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.gpu import launch
from ssl_kernels.backends.gpu.kernels import Three
from ssl_kernels.backends.gpu.launch import Problem, Side, cdiv

# Groups of rows, and of columns, in the forward: their partial sums and maxima take 128 floats a row, as an embedding
# of D = 128, and the 2,080 pairs of 64 groups fill 132 multiprocessors eight times over, two programs each. More only
# where the other side has so few that the machine would idle.
MAX_GROUPS = 64

# Groups are multiples of so many, and of a tile's columns.
GROUP_MULTIPLE = 128


# What a row puts into G: weight, top, neg and, for a backend that reads it there, its factor.
WEIGHTS = 4


def sum_negatives(p: Problem, columns: bool = False) -> tuple[Tensor, Tensor | None]:
    """``[sums or maxima, group of the other side, padded row]`` of the rows and, if asked, of the columns."""
    x, y = p.x, p.y
    tile = p.kernels.tile("forward" if x is y else "cross", p.operands, p.padded_width, p.arch)
    multiple = max(GROUP_MULTIPLE, tile.BLOCK_N)
    x_group, y_group = _group(x.rows, y.rows, multiple), _group(y.rows, x.rows, multiple)
    x_groups, y_groups = cdiv(x.rows, x_group), cdiv(y.rows, y_group)
    x_sums = p.empty(2, y_groups, x.padded)
    y_sums = x_sums if x is y else p.empty(2, x_groups, y.padded) if columns else None
    p.kernels.forward(p, tile, x_sums, y_sums, x_group, y_group)
    return x_sums, y_sums


def _group(rows: int, others: int, multiple: int) -> int:
    """How many rows make a group, against a side of ``others``."""
    most = max(MAX_GROUPS, 4 * launch.PROGRAMS // min(MAX_GROUPS, cdiv(others, multiple)))
    return cdiv(cdiv(rows, most), multiple) * multiple


def combine(
    p: Problem, x: Side, y: Side, step: int, sums: Tensor, pos: Tensor,
    received: Tensor | None = None, mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``neg``, ``pos`` and ``top`` of the rows of ``x``; their ``mean`` where columns were received."""
    neg, top = p.empty(x.rows), p.empty(x.rows)
    p.kernels.combine(p, x, y, step, sums, (neg, pos, top), received, mean)
    return neg, pos, top


def weigh(p: Problem, of_x: Three, of_y: Three | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """What rows and columns put into G, from their ``(neg, top, dneg)``, and the unit it is in."""
    x_weights = p.empty(WEIGHTS, p.x.padded)
    y_weights = None if of_y is None else p.empty(WEIGHTS, p.y.padded)
    unit = p.empty(1)
    given = _contiguous(of_x), None if of_y is None else _contiguous(of_y)
    p.kernels.weigh(p, *given, x_weights, y_weights, unit)
    return x_weights, y_weights, unit


def _contiguous(tensors: Three) -> Three:
    neg, top, dneg = tensors
    return neg.contiguous(), top.contiguous(), dneg.contiguous()


def receive(p: Problem, x: Side, y: Side, step: int, x_weights: Tensor | None, y_weights: Tensor | None) -> Tensor:
    """``[span of columns, padded row, padded width]``: what the rows of ``x`` receive from those of ``y``."""
    tile = p.kernels.tile("backward", p.operands, p.padded_width, p.arch)
    grid, span = p.grid(x, y, tile)
    received = p.empty(grid[1], x.padded, p.padded_width)
    p.kernels.backward(p, x, y, step, tile, grid, span, x_weights, y_weights, received)
    return received


def finish(
    p: Problem, x: Side, y: Side, step: int, received: Tensor, unit: Tensor | None,
    dpos: Tensor | None, y_dpos: Tensor | None = None, dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """The gradients of the inputs of ``x``, and each program's part of the scale's gradient."""
    dxs = tuple(torch.empty(t.shape, dtype=dtype or t.dtype, device=t.device) for t in x.xs)
    dpos, y_dpos = (None if t is None else t.contiguous() for t in (dpos, y_dpos))
    along = p.kernels.finish(p, x, y, step, received, unit, dpos, y_dpos, dxs)
    return x.per_input(dxs), along


def add_scale(p: Problem, along: Tensor) -> Tensor:
    scale, _ = p.logits
    if scale is None:
        return torch.zeros((), dtype=p.dtype, device=p.device)
    dscale = torch.empty_like(scale)
    p.kernels.sum_scale(p, along, dscale)
    return dscale
