"""Cosines of paired rows: both read once forward, once backward."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import DTYPES, rows


def cosine(x, y, eps):
    x, y = rows(x), rows(y)
    value = torch.empty(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    kept = value, torch.empty_like(value), torch.empty_like(value)
    native.C.cosine(*_rest(x, y, eps, kept))
    return kept


def cosine_backward(dvalue, x, y, value, x_norm, y_norm, eps, want_x, want_y):
    x, y, dvalue = rows(x), rows(y), dvalue.contiguous()
    dx = torch.empty(x.shape if want_x else (0,), dtype=x.dtype)
    dy = torch.empty(y.shape if want_y else (0,), dtype=y.dtype)
    out = dx.data_ptr() if want_x else 0, dy.data_ptr() if want_y else 0
    native.C.cosine_backward(*_rest(x, y, eps, (value, x_norm, y_norm)), dvalue.data_ptr(), *out)
    return dx, dy


def _rest(x, y, eps, kept):
    given = (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0)), x.shape[0], x.shape[1], DTYPES[x.dtype], eps
    return *given, *(t.data_ptr() for t in kept), torch.get_num_threads()
