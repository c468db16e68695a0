"""The launches for a sum over all pairs of two sets of embeddings."""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device
from ssl_kernels.backends.gpu.kernels import Kernels
from ssl_kernels.backends.gpu.launch import Problem, Side
from ssl_kernels.backends.gpu.passes import finish


def pair_softplus(
    kernels: Kernels, x: Tensor, y: Tensor, scale: Tensor | None, bias: Tensor | None, multiplier: float,
    offset: int | None, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with on_device(x):
        p = Problem(kernels, scale, multiplier, len(y) if offset is None else offset, False, [x], [y])
        total, dscale, dbias = p.empty(), p.empty(), p.empty()
        dx, dy, along = p.empty(0), p.empty(0), None
        if gradient:
            p.find_largest()
            # a sweep for each side, unless both take less together
            of_y = unit = None
            if both := kernels.softplus_both(p, bias):
                sums, of_x, of_y, unit = both
            else:
                sums, of_x = _sweep(p, p.x, p.y, p.step, bias, valued=True, gradient=True)
            (dx,), along = finish(p, p.x, p.y, p.step, of_x, unit, None, dtype=p.dtype)
            if of_y is None:
                _, of_y = _sweep(p, p.y, p.x, -p.step, bias, valued=False, gradient=True)
            (dy,), _ = finish(p, p.y, p.x, -p.step, of_y, unit, None, dtype=p.dtype)
        else:
            sums, _ = _sweep(p, p.x, p.y, p.step, bias, valued=True, gradient=False)
        kernels.add_up(p, sums, along, total, dscale, dbias)
    return total, dx, dy, dscale, dbias


def _sweep(
    p: Problem, x: Side, y: Side, step: int, bias: Tensor | None, *, valued: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Each program's part of the value and of the bias's gradient, and ``[span, padded row, padded width]``."""
    tile = p.kernels.tile("softplus" if gradient else "value", p.operands, p.padded_width, p.arch)
    grid, span = p.grid(x, y, tile)
    sums = p.empty(2, grid[0] * grid[1] if valued else 0)
    received = p.empty(grid[1] if gradient else 0, x.padded, p.padded_width)
    p.kernels.softplus(p, x, y, step, tile, grid, span, bias, sums if valued else None, received if gradient else None)
    return sums, received
