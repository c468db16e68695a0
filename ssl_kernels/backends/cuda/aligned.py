"""Cosines of paired rows: both read once forward, once backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.cuda.native import DTYPES, NOTHING, C, stream
from ssl_kernels.backends.gpu.device import on_device, rows_of


def cosine(x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, y = rows_of(x), rows_of(y)
    value = torch.empty(len(x), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    kept = value, torch.empty_like(value), torch.empty_like(value)
    with on_device(x):
        C.cosine(_call(x, y, eps, kept), stream(x.device))
    return kept


def cosine_backward(
    dvalue: Tensor, x: Tensor, y: Tensor, value: Tensor, x_norm: Tensor, y_norm: Tensor, eps: float,
    want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, y, dvalue = rows_of(x), rows_of(y), dvalue.contiguous()
    dx, dy = (torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device) for want in (want_x, want_y))
    out = dx.data_ptr() if want_x else NOTHING, dy.data_ptr() if want_y else NOTHING
    with on_device(x):
        C.cosine_backward(_call(x, y, eps, (value, x_norm, y_norm)), dvalue.data_ptr(), *out, stream(x.device))
    return dx, dy


def _call(x: Tensor, y: Tensor, eps: float, kept: tuple[Tensor, Tensor, Tensor]) -> tuple[object, ...]:
    rows, width = x.shape
    given = x.data_ptr(), y.data_ptr(), rows, width, x.stride(0), y.stride(0), DTYPES[x.dtype], eps
    return *given, *(t.data_ptr() for t in kept)
