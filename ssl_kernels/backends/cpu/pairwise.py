"""The sum of a softplus over every pair, with its gradients."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import numbers, part, results_dtype, rows


def pair_softplus(x, y, scale, bias, multiplier, offset, gradient):
    x, y = rows(x), rows(y)
    dx, dy = (torch.empty(t.shape if gradient else (0,), dtype=results_dtype(x)) for t in (x, y))
    total, dfactor, dbias = native.C.pair_softplus(
        numbers(x, scale, multiplier, False),
        part(x, dx if gradient else None),
        [part(y, dy if gradient else None)],
        offset,
        0.0 if bias is None else bias.item(),
    )
    total, dscale, dbias = (torch.tensor(v, dtype=dx.dtype) for v in (total, multiplier * dfactor, dbias))
    return total, dx, dy, dscale, dbias
