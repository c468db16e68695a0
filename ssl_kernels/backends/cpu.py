"""The C++ kernels of ``csrc/cpu``: blockwise, symmetric, on as many threads as torch uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_kernels._native import load

DEVICES = ("cpu",)

_C: Any
_C, _reason = load()
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PRECISIONS = {"highest": 0, "high": 1, "medium": 2}


def why_not() -> str | None:
    return _reason


def self_lse(x, scale, multiplier, period, normalize):
    x = [_rows(t) for t in x]
    rows = sum(t.shape[0] for t in x)
    neg = torch.empty(rows, dtype=torch.float64 if x[0].dtype == torch.float64 else torch.float32)
    pos, top = neg.new_empty((rows // period - 1, rows)), torch.empty_like(neg)
    parts = [(t.data_ptr(), 0, t.shape[0], t.stride(0)) for t in x]
    out = neg.data_ptr(), pos.data_ptr(), top.data_ptr()
    _C.self_lse(parts, *_rest(x, scale, multiplier, period, normalize), *out)
    return neg, pos, top


def self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top):
    x = [_rows(t) for t in x]
    dx = [torch.empty(t.shape, dtype=t.dtype) for t in x]
    parts = [(t.data_ptr(), d.data_ptr(), t.shape[0], t.stride(0)) for t, d in zip(x, dx, strict=True)]
    dneg, dpos = dneg.contiguous(), dpos.contiguous()
    given = neg.data_ptr(), top.data_ptr(), dneg.data_ptr(), dpos.data_ptr()
    dfactor = _C.self_lse_backward(parts, *_rest(x, scale, multiplier, period, normalize), *given)
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, torch.full_like(scale, multiplier * dfactor)


def softplus_mean(x, scale, multiplier, period):
    x = [_rows(t) for t in x]
    dx = [torch.empty(t.shape, dtype=t.dtype) for t in x]
    parts = [(t.data_ptr(), d.data_ptr(), t.shape[0], t.stride(0)) for t, d in zip(x, dx, strict=True)]
    mean, dfactor = _C.self_lse_softplus_mean(parts, *_rest(x, scale, multiplier, period, True))
    loss = torch.tensor(mean, dtype=torch.float64 if x[0].dtype == torch.float64 else torch.float32)
    return loss, torch.zeros_like(loss) if scale is None else torch.full_like(scale, multiplier * dfactor), dx


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def _rest(x, scale, multiplier, period, normalize):
    factor = multiplier if scale is None else multiplier * scale.item()
    precision = _PRECISIONS[torch.get_float32_matmul_precision()]
    return _DTYPES[x[0].dtype], precision, x[0].shape[1], period, normalize, factor, torch.get_num_threads()
