"""What the passes of ``backends.gpu`` ask of a backend, as launches of the CUDA kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ssl_kernels.backends.cuda import wide
from ssl_kernels.backends.cuda.native import DTYPES, NOTHING, C, address, generation, number, stream
from ssl_kernels.backends.gpu.kernels import DOUBLE, HALF, SPLIT, Grid, Three
from ssl_kernels.backends.gpu.launch import ROW_MULTIPLE, Problem, Side, cdiv
from ssl_kernels.backends.gpu.passes import WEIGHTS

_KERNELS = {"forward": 0, "cross": 1, "backward": 2, "attend": 3, "softplus": 4, "value": 5}
_OPERANDS = {HALF: 0, SPLIT: 1, DOUBLE: 2}


class Tile(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    alone: bool


# Wider rows do not receive anything in registers (see wide).
WIDEST = {HALF: 256, SPLIT: 128, DOUBLE: math.inf}
# Columns of a tile that is as wide as the matrix.
ALL = 1 << 30


def padded_width(width: int) -> int:
    """Operand rows come in panels of 128 bytes; up to 256 the kernels know one, two or four of them."""
    panels = cdiv(width, 64)
    return 64 * (panels if panels > 4 else 1 << (panels - 1).bit_length())


def _keeps_entries(operands: str, width: int) -> bool:
    return width > WIDEST[operands]


@lru_cache(maxsize=1024)
def tile(kernel: str, operands: str, width: int, arch: int) -> Tile:
    if kernel == "backward" and _keeps_entries(operands, width):
        return Tile(ROW_MULTIPLE, ALL, width, False)
    return Tile(*C.tile(_KERNELS[kernel], _OPERANDS[operands], width, generation(arch)))


def prepare(p: Problem, units: Tensor, factors: Tensor | None) -> None:
    parts = [part for side in p.sides for part in _parts(side, side.xs, side.first)]
    C.prepare(
        (parts, DTYPES[p.x.inputs[0].dtype], p.width), _OPERANDS[p.operands], p.normalize, address(units),
        address(factors), sum(side.padded for side in p.sides), p.padded_width, p.low_offset, stream(p.device),
    )  # fmt: skip


def largest_factors(p: Problem, largest: Tensor) -> None:
    pointers, rows = (address(p.x.factors), address(p.y.factors)), (p.x.rows, p.y.rows)
    C.largest_factors(pointers, rows, len(p.sides), address(largest), stream(p.device))


def forward(p: Problem, tile: Tile, x_sums: Tensor, y_sums: Tensor | None, x_group: int, y_group: int) -> None:
    of_y = (NOTHING, NOTHING) if y_sums is None else _halves(y_sums)
    C.forward(_matrix(p, p.x, p.y, p.step), *_halves(x_sums), *of_y, x_group, y_group, stream(p.device))


def combine(
    p: Problem, x: Side, y: Side, step: int, sums: Tensor, results: Three, received: Tensor | None, mean: Tensor | None
) -> None:
    neg, pos, top = results
    C.combine(
        _matrix(p, x, y, step), *_halves(sums), sums.shape[1], address(received), address(neg), address(pos),
        address(top), pos.numel() > 0, address(mean), p.width, stream(p.device),
    )  # fmt: skip


def weigh(
    p: Problem, of_x: Three, of_y: Three | None, x_weights: Tensor, y_weights: Tensor | None, unit: Tensor
) -> None:
    scale, multiplier = p.logits
    x = (*map(address, of_x), address(p.x.factors), address(x_weights), p.x.rows, p.x.padded)
    of_others = map(address, of_y) if of_y else (NOTHING,) * 3
    y = (*of_others, address(p.y.factors), address(y_weights), p.y.rows, p.y.padded)
    C.weigh(x, y, p.operands == DOUBLE, p.normalize, number(scale), multiplier, address(unit), stream(p.device))


def backward(
    p: Problem, x: Side, y: Side, step: int, tile: Tile, grid: Grid, span: int, x_weights: Tensor | None,
    y_weights: Tensor | None, received: Tensor,
) -> None:  # fmt: skip
    matrix, of_columns = _matrix(p, x, y, step), y_weights is not None
    columns_weights = _no_weights(p, y) if y_weights is None else y_weights
    weights = address(x_weights), address(columns_weights), of_columns
    if tile.BLOCK_N < ALL:
        C.backward(matrix, *weights, address(received), span, stream(p.device))
    else:
        wide.receive(p, x, y, _keeping(matrix, weights, p), received[0])


def backward_both(p: Problem, x_weights: Tensor, y_weights: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if not _keeps_entries(p.operands, p.padded_width):
        return None
    columns_weights = _no_weights(p, p.y) if y_weights is None else y_weights
    weights = address(x_weights), address(columns_weights), y_weights is not None
    of_x, of_y = (p.empty(1, side.padded, p.padded_width) for side in (p.x, p.y))
    wide.receive(p, p.x, p.y, _keeping(_matrix(p, p.x, p.y, p.step), weights, p), of_x[0], of_y[0])
    return of_x, of_y


def _keeping(matrix: tuple[object, ...], weights: tuple[int, int, bool], p: Problem) -> wide.Keep:
    def keep(entries: Tensor, first: int, rows: int) -> None:
        C.gradient_entries(matrix, *weights, address(entries), first, rows, stream(p.device))

    return keep


def _no_weights(p: Problem, side: Side) -> Tensor:
    """Those of columns that nobody reduced: the kernels read the factors of theirs."""
    weights = p.empty(WEIGHTS, side.padded).zero_()
    if side.factors is None:
        weights[-1].fill_(1.0)
    else:
        weights[-1].copy_(side.factors[: side.padded])
    return weights


def nearest(p: Problem, span: int, products: Tensor, indices: Tensor, index: Tensor) -> None:
    results = address(products), address(indices), span, address(index)
    C.nearest(_matrix(p, p.x, p.y, p.step), *results, stream(p.device))


def finish(
    p: Problem, x: Side, y: Side, step: int, received: Tensor, unit: Tensor | None, dpos: Tensor | None,
    y_dpos: Tensor | None, dxs: tuple[Tensor, ...],
) -> Tensor:  # fmt: skip
    along = p.empty(C.finish_blocks(x.rows))
    inputs = _parts(x, dxs, 0), DTYPES[x.inputs[0].dtype], p.width
    C.finish(
        _matrix(p, x, y, step), inputs, DTYPES[dxs[0].dtype], address(received), len(received),
        address(unit), address(dpos), address(y_dpos), address(along), stream(p.device),
    )  # fmt: skip
    return along


def sum_scale(p: Problem, along: Tensor, dscale: Tensor) -> None:
    doubles, multiplier = p.operands == DOUBLE, p.logits[1]
    C.sum_scale(
        address(along), len(along), doubles, multiplier, address(dscale), DTYPES[dscale.dtype], stream(p.device)
    )


def attend(p: Problem, tile: Tile, grid: Grid, span: int, sums: Tensor, received: Tensor) -> None:
    C.attend(_matrix(p, p.x, p.y, p.step), *_halves(sums), address(received), span, stream(p.device))


def softplus(
    p: Problem, x: Side, y: Side, step: int, tile: Tile, grid: Grid, span: int, bias: Tensor | None,
    sums: Tensor | None, received: Tensor | None,
) -> None:  # fmt: skip
    matrix = _matrix(p, x, y, step)
    C.softplus(matrix, number(bias), address(sums), NOTHING, address(received), span, stream(p.device))


def softplus_both(p: Problem, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    if not _keeps_entries(p.operands, p.padded_width):
        return None
    matrix = _matrix(p, p.x, p.y, p.step)
    grid, span = p.grid(p.x, p.y, tile("value", p.operands, p.padded_width, p.arch))
    sums, largest = p.empty(2, grid[0] * grid[1]), p.empty(grid[0] * grid[1])
    C.softplus(matrix, number(bias), address(sums), address(largest), NOTHING, span, stream(p.device))
    unit = largest.amax(0, keepdim=True).clamp_(min=1e-30) / 2**14

    def keep(entries: Tensor, first: int, rows: int) -> None:
        C.softplus_entries(matrix, number(bias), address(unit), address(entries), first, rows, stream(p.device))

    of_x, of_y = (p.empty(1, side.padded, p.padded_width) for side in (p.x, p.y))
    wide.receive(p, p.x, p.y, keep, of_x[0], of_y[0])
    return sums, of_x, of_y, unit


def add_up(p: Problem, sums: Tensor, along: Tensor | None, value: Tensor, dscale: Tensor, dbias: Tensor) -> None:
    parts = 0 if along is None else len(along)
    C.add_up(
        address(sums), sums.shape[1], address(along), parts, p.operands == DOUBLE, p.logits[1],
        address(value), address(dscale), address(dbias), stream(p.device),
    )  # fmt: skip


def _matrix(p: Problem, x: Side, y: Side, step: int) -> tuple[object, ...]:
    scale, multiplier = p.logits
    return (
        _side(x), _side(y), _OPERANDS[p.operands], p.padded_width, p.low_offset, x is y, step, p.normalize,
        number(scale), multiplier, generation(p.arch),
    )  # fmt: skip


def _side(side: Side) -> tuple[int, ...]:
    return address(side.units), address(side.factors), address(side.largest), side.rows, side.padded


def _parts(side: Side, grads: tuple[Tensor, ...], first: int) -> list[tuple[int, ...]]:
    """Data, gradient, stride, rows and first row of every input."""
    return [
        (x.data_ptr(), grad.data_ptr(), stride, count, first + at)
        for x, grad, stride, count, at in zip(side.xs, grads, side.strides, side.counts, side.firsts, strict=True)
    ]


def _halves(t: Tensor) -> tuple[int, int]:
    """Addresses of sums and of what they are relative to, which lie one behind the other."""
    first = t.data_ptr()
    return first, first + t.stride(0) * t.element_size()
