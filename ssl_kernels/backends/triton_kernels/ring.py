"""A queue of embeddings in a ring: normalised, written, and the pointer advanced, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.triton_kernels.streams import on_device, rows_of, streamed_rows

# How many programs are done is counted in the pointer's own upper bits, so that the last one knows it is the last
ARRIVAL = tl.constexpr(1 << 40)


@triton.jit
def enqueue(
    queue, pointer, rows, size, queue_stride, count, rows_stride, width,
    NORMALIZE: tl.constexpr, WRAP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    DOUBLE: tl.constexpr = queue.dtype.element_ty == tl.float64 or rows.dtype.element_ty == tl.float64
    DTYPE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    at = tl.atomic_add(pointer, 0) % ARRIVAL
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = at + row
    if WRAP:
        stays = (row < count) & (row >= count - size)
        slot = slot % size
    else:
        stays = (row < count) & (slot < size)

    by = tl.full([ROWS], 1.0, DTYPE)
    if NORMALIZE:
        squares = tl.zeros([ROWS], DTYPE)
        for start in range(0, width, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = stays[:, None] & (d < width)[None, :]
            x = tl.load(rows + (row.to(tl.int64)[:, None] * rows_stride + d[None, :]), mask=inside, other=0.0).to(DTYPE)
            squares += tl.sum(x * x, 1)
        norm = tl.sqrt(squares)
        least = tl.full([ROWS], 1e-12, DTYPE)
        by = tl.where(norm < least, least, norm)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = stays[:, None] & (d < width)[None, :]
        x = tl.load(rows + (row.to(tl.int64)[:, None] * rows_stride + d[None, :]), mask=inside, other=0.0).to(DTYPE)
        to = queue + (slot.to(tl.int64)[:, None] * queue_stride + d[None, :])
        tl.store(to, (x / by[:, None]).to(queue.dtype.element_ty), mask=inside)

    # every program has read the pointer by now that comes here before the last
    before = tl.atomic_add(pointer, ARRIVAL)
    if before // ARRIVAL == tl.num_programs(0) - 1:
        end = at + count
        if WRAP:
            end = end % size
        else:
            end = tl.where(end < size, end, 0)
        tl.atomic_xchg(pointer, end)


def enqueue_(queue: Tensor, pointer: Tensor, rows: Tensor, normalize: bool, wrap: bool) -> None:
    rows = rows_of(rows)
    (size, width), count = queue.shape, rows.shape[0]
    blocks = streamed_rows(width)
    with on_device(queue):
        enqueue[(triton.cdiv(count, blocks["ROWS"]),)](
            queue, pointer, rows, size, queue.stride(0), count, rows.stride(0), width,
            NORMALIZE=normalize, WRAP=wrap, **blocks,
        )  # fmt: skip
