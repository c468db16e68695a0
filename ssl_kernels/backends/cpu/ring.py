"""A queue of embeddings in a ring: read, normalised and written in one go."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import DTYPES


def enqueue_(queue, pointer, rows, normalize, wrap):
    size, width = queue.shape
    native.C.enqueue(
        queue.data_ptr(), size, queue.stride(0), DTYPES[queue.dtype],
        rows.data_ptr(), rows.shape[0], rows.stride(0), DTYPES[rows.dtype],
        width, pointer.data_ptr(), normalize, wrap, torch.get_num_threads(),
    )  # fmt: skip
