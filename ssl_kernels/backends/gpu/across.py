"""The launches for one set of embeddings against another."""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device
from ssl_kernels.backends.gpu.kernels import Kernels
from ssl_kernels.backends.gpu.launch import Problem
from ssl_kernels.backends.gpu.passes import add_scale, combine, finish, receive, sum_negatives, weigh


def cross_lse(
    kernels: Kernels, x: Tensor, y: list[Tensor], scale: Tensor | None, multiplier: float, offset: int | None,
    normalize: bool, columns: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    with on_device(x):
        p = _problem(kernels, x, y, scale, multiplier, offset, normalize)
        positives = 0 if offset is None else len(x)
        x_sums, y_sums = sum_negatives(p, columns)
        rows = combine(p, p.x, p.y, p.step, x_sums, p.empty(positives))
        if y_sums is None:
            return *rows, p.empty(0), p.empty(0), p.empty(0)
        return *rows, *combine(p, p.y, p.x, -p.step, y_sums, p.empty(positives))


def cross_lse_backward(
    kernels: Kernels, dneg: Tensor, dpos: Tensor, dneg_y: Tensor, dpos_y: Tensor, x: Tensor, y: list[Tensor],
    scale: Tensor | None, multiplier: float, offset: int | None, normalize: bool,
    neg: Tensor, top: Tensor, neg_y: Tensor, top_y: Tensor, want_x: bool, want_y: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
    with on_device(x):
        p = _problem(kernels, x, y, scale, multiplier, offset, normalize)
        p.find_largest()
        columns = len(neg_y) > 0
        x_weights, y_weights, unit = weigh(p, (neg, top, dneg), (neg_y, top_y, dneg_y) if columns else None)
        positives = (None, None) if offset is None else (dpos, dpos_y if columns else None)
        dx, dy = x.new_empty(0), [t.new_empty(0) for t in y]
        of_x, of_y = (kernels.backward_both(p, x_weights, y_weights) if want_x and want_y else None) or (None, None)
        if want_y:
            received = receive(p, p.y, p.x, -p.step, y_weights, x_weights) if of_y is None else of_y
            dy, along = finish(p, p.y, p.x, -p.step, received, unit, *positives)
        if want_x or not want_y:  # the scale's gradient takes one of the two
            received = receive(p, p.x, p.y, p.step, x_weights, y_weights) if of_x is None else of_x
            (found,), along = finish(p, p.x, p.y, p.step, received, unit, *positives)
            dx = found if want_x else dx
        return dx, dy, add_scale(p, along)


def attend_lse(
    kernels: Kernels, x: Tensor, y: list[Tensor], scale: Tensor | None, multiplier: float, offset: int | None,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with on_device(x):
        p = _problem(kernels, x, y, scale, multiplier, offset, normalize)
        p.find_largest()
        tile = kernels.tile("attend", p.operands, p.padded_width, p.arch)
        grid, span = p.grid(p.x, p.y, tile)
        sums = p.empty(2, grid[1], p.x.padded)
        received = p.empty(grid[1], p.x.padded, p.padded_width)
        kernels.attend(p, tile, grid, span, sums, received)
        mean = p.empty(len(x), p.width)
        pos = p.empty(0 if offset is None else len(x))
        return *combine(p, p.x, p.y, p.step, sums, pos, received, mean), mean


def _problem(kernels, x, y, scale, multiplier, offset, normalize) -> Problem:
    # no positives: a column past the last
    step = sum(len(t) for t in y) if offset is None else offset
    return Problem(kernels, scale, multiplier, step, normalize, [x], y)
