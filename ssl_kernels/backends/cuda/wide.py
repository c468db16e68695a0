"""The backward pass of rows too wide to receive anything in registers: G is kept, block by block of rows, and a product
of matrices weighs the columns with it. That one is torch's: nothing of ours is in it.

Cutting the result instead, as ``csrc/cuda/weighing.h`` can, computes every tile once for each 256 of the width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.launch import ROW_MULTIPLE, Problem, Side, cdiv

PANEL = 64  # float16 of a row that lie together (csrc/cuda/operands.h)

# G takes at most so many times the memory of the operand rows of both sides, which keeps it linear in their number, and
# the products of matrices large enough to fill a GPU: 4,096 rows of 32,768 columns at a width of 512.
COPIES = 4


def rows_at_once(p: Problem, x: Side, y: Side) -> int:
    """Rows whose entries of G are kept at a time, whole blocks."""
    blocks = COPIES * (x.padded + y.padded) * p.padded_width // (y.padded * ROW_MULTIPLE)
    return min(x.padded, max(1, blocks) * ROW_MULTIPLE)


def plain_rows(p: Problem, side: Side) -> Tensor:
    """``[padded rows, padded width]`` of the operand rows, out of their order in memory."""
    assert side.units is not None
    blocks, panels = side.padded // ROW_MULTIPLE, p.padded_width // PANEL
    units = side.units[: side.padded * p.padded_width]
    # piece c of row r lies where c ^ (r % 8) would, eight pieces of eight numbers a row
    r = torch.arange(8, device=units.device)
    swapped = units.view(blocks, panels, ROW_MULTIPLE // 8, 8, 8, 8)[:, :, :, r[:, None], r[:, None] ^ r[None, :]]
    return swapped.movedim(1, 3).reshape(side.padded, p.padded_width)


def weigh_columns(entries: Tensor, columns: Tensor, received: Tensor) -> None:
    """``received = entries @ columns``, float16 to float32."""
    if entries.is_cuda:
        torch.mm(entries, columns, out_dtype=torch.float32, out=received)
    else:
        torch.mm(entries.float(), columns.float(), out=received)


def columns_written(y: Side) -> int:
    return cdiv(y.rows, PANEL) * PANEL
