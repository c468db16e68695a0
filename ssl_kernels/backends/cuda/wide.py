"""The backward pass of rows too wide to receive anything in registers: G is kept, block by block of rows, and products
of matrices weigh columns, and rows, with it. Those are torch's: nothing of ours is in them.

Cutting the result instead, as ``csrc/cuda/weighing.h`` can, computes every tile once for each 256 of the width; and
what both sides receive takes G once, where sweeps that own their rows compute it once for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.launch import ROW_MULTIPLE, Problem, Side, cdiv

PANEL = 64  # float16 of a row that lie together (csrc/cuda/operands.h)

# G takes at most so many times the memory of the operand rows of both sides, which keeps it linear in their number, and
# the products of matrices large enough to fill a GPU: 4,096 rows of 32,768 columns at a width of 512.
COPIES = 4

Keep = Callable[[Tensor, int, int], None]  # G of `rows` rows from `first` on, into float16 [rows, padded columns]


def receive(p: Problem, x: Side, y: Side, keep: Keep, of_x: Tensor, of_y: Tensor | None = None) -> None:
    """``of_x[i] = sum_j G_ij y_j`` and, if asked, ``of_y[j] = sum_i G_ij x_i``: ``[padded rows, padded width]``."""
    columns, written = _plain_rows(p, y), cdiv(y.rows, PANEL) * PANEL
    rows_of_x = None if of_y is None else _plain_rows(p, x)
    most = _rows_at_once(p, x, y)
    entries = p.empty(most, y.padded, dtype=torch.float16)
    for first in range(0, x.padded, most):
        last = min(first + most, x.padded)
        keep(entries, first, last - first)
        g = entries[: last - first, :written]
        _product(g, columns[:written], of_x[first:last])
        if rows_of_x is None or of_y is None:
            continue
        if first == 0:
            _product(g.T, rows_of_x[:last], of_y[:written])
        else:
            of_y[:written] += _product(g.T, rows_of_x[first:last], torch.empty_like(of_y[:written]))


def _rows_at_once(p: Problem, x: Side, y: Side) -> int:
    """Rows whose entries of G are kept at a time, whole blocks."""
    blocks = COPIES * (x.padded + y.padded) * p.padded_width // (y.padded * ROW_MULTIPLE)
    return min(x.padded, max(1, blocks) * ROW_MULTIPLE)


def _plain_rows(p: Problem, side: Side) -> Tensor:
    """``[padded rows, padded width]`` of the operand rows, out of their order in memory, as parts of the longest."""
    assert side.units is not None
    blocks, panels = side.padded // ROW_MULTIPLE, p.padded_width // PANEL
    units = side.units[: side.padded * p.padded_width]
    # piece c of row r lies where c ^ (r % 8) would, eight pieces of eight numbers a row
    r = torch.arange(8, device=units.device)
    swapped = units.view(blocks, panels, ROW_MULTIPLE // 8, 8, 8, 8)[:, :, :, r[:, None], r[:, None] ^ r[None, :]]
    rows = swapped.movedim(1, 3).reshape(side.padded, p.padded_width)
    if side.factors is not None and side.largest is not None:
        rows.copy_(rows * (side.factors[: side.padded] / side.largest[:1])[:, None])  # powers of two
    return rows


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b``, float16 to float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)
