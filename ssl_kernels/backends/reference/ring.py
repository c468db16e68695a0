"""A queue of embeddings in a ring."""

from __future__ import annotations

import torch

from ssl_kernels.backends.reference.rows import unit


@torch.no_grad()
def enqueue_(queue, pointer, rows, normalize, wrap):
    size, count = len(queue), len(rows)
    z, _ = unit([rows.double() if queue.dtype == torch.float64 else rows], normalize)
    j = torch.arange(count, device=queue.device)
    at = pointer.reshape(()) + j
    stay = j >= count - size if wrap else at < size
    queue[at[stay] % size] = z[stay].to(queue.dtype)
    end = pointer + count
    pointer.copy_(end % size if wrap else torch.where(end < size, end, 0))
