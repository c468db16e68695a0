"""The backward pass of rows too wide to receive anything in registers: G is kept, block by block of rows, and products
of matrices weigh columns, and rows, with it. Those are torch's: nothing of ours is in them.

Cutting the result instead, as ``csrc/cuda/weighing.h`` can, computes every tile once for each 256 of the width (128
where float32 is two float16); and what both sides receive takes G once, where sweeps that own their rows compute it
once for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.launch import Problem, Side, cdiv

# Rows of a block, and float16 of a row that lie together (csrc/cuda/operands.h).
BLOCK, PANEL = 128, 64
# Columns are written up to a multiple of so many.
WRITTEN = 32

# G takes at most so many times the memory of the operand rows of both sides, which keeps it linear in their number, and
# the products of matrices large enough to fill a GPU: 4,096 rows of 32,768 columns at a width of 512.
COPIES = 4

# G of `rows` rows from `first` on, into float16 [pieces, rows, padded columns]
Keep = Callable[[Tensor, int, int], None]


def receive(p: Problem, x: Side, y: Side, keep: Keep, of_x: Tensor, of_y: Tensor | None = None) -> None:
    """``of_x[i] = sum_j G_ij y_j`` and, if asked, ``of_y[j] = sum_i G_ij x_i``: ``[padded rows, padded width]``."""
    columns, written = _plain_rows(p, y), cdiv(y.rows, WRITTEN) * WRITTEN
    rows_of_x = None if of_y is None else _plain_rows(p, x)
    most = _rows_at_once(p, x, y)
    room = p.empty(p.pieces * most * y.padded, dtype=torch.float16)
    for first in range(0, x.padded, most):
        last = min(first + most, x.padded)
        entries = room[: p.pieces * (last - first) * y.padded].view(p.pieces, last - first, y.padded)
        keep(entries, first, last - first)
        g = entries[:, :, :written]
        _product(g, columns[:, :written], of_x[first:last])
        if rows_of_x is None or of_y is None:
            continue
        rows = rows_of_x[:, first:last]
        if first == 0:
            _product(g.mT, rows, of_y[:written])
        else:
            of_y[:written] += _product(g.mT, rows, torch.empty_like(of_y[:written]))


def _rows_at_once(p: Problem, x: Side, y: Side) -> int:
    """Rows whose entries of G are kept at a time, whole blocks."""
    blocks = COPIES * (x.padded + y.padded) * p.padded_width // (y.padded * BLOCK)
    return min(x.padded, max(1, blocks) * BLOCK)


def _plain_rows(p: Problem, side: Side) -> Tensor:
    """``[pieces, padded rows, padded width]`` of the operand rows, out of their order in memory, as parts of the
    longest."""
    assert side.units is not None
    blocks, panels = side.padded // BLOCK, p.padded_width // PANEL
    units = side.units.as_strided((p.pieces, side.padded * p.padded_width), (p.low_offset, 1))
    # piece c of row r lies where c ^ (r % 8) would, eight pieces of eight numbers a row
    r = torch.arange(8, device=units.device)
    laid_out = units.view(p.pieces, blocks, panels, BLOCK // 8, 8, 8, 8)
    swapped = laid_out[:, :, :, :, r[:, None], r[:, None] ^ r[None, :]]
    rows = swapped.movedim(2, 4).reshape(p.pieces, side.padded, p.padded_width)
    if side.factors is not None and side.largest is not None:
        rows.copy_(rows * (side.factors[: side.padded] / side.largest[:1])[:, None])  # powers of two
    return rows


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` of all pieces but the two low ones, the small products first."""
    if len(a) == 1:
        return _product_of_pieces(a[0], b[0], out)
    _product_of_pieces(a[1], b[0], out)
    part = torch.empty_like(out)
    out += _product_of_pieces(a[0], b[1], part)
    out += _product_of_pieces(a[0], b[0], part)
    return out


def _product_of_pieces(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b``, float16 to float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)
