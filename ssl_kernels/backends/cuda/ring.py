"""A queue of embeddings in a ring: normalised, written, and the pointer advanced, in one launch."""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.backends.cuda.native import DTYPES, C, stream
from ssl_kernels.backends.gpu.device import on_device, rows_of


def enqueue_(queue: Tensor, pointer: Tensor, rows: Tensor, normalize: bool, wrap: bool) -> None:
    rows = rows_of(rows)
    to, of = ((t.data_ptr(), t.shape[0], t.stride(0), DTYPES[t.dtype]) for t in (queue, rows))
    with on_device(queue):
        C.enqueue(to, of, queue.shape[1], pointer.data_ptr(), normalize, wrap, stream(queue.device))
