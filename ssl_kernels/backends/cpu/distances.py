"""Points: log-sum-exp by their distances, half of the matrix serving both its sides, and nearest neighbours."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import numbers, part, results_dtype, rows


def student_lse(x, scale, multiplier, dof, period):
    x = [rows(t) for t in x]
    neg = torch.empty(sum(t.shape[0] for t in x), dtype=results_dtype(x[0]))
    low = torch.empty_like(neg)
    rest = [part(t) for t in x], period, dof
    native.C.student_lse(numbers(x[0], scale, multiplier, False), *rest, neg.data_ptr(), low.data_ptr())
    return neg, low


def student_lse_backward(dneg, x, scale, multiplier, dof, period, neg, low):
    x = [rows(t) for t in x]
    dx = [torch.empty(t.shape, dtype=t.dtype) for t in x]
    dneg = dneg.contiguous()
    rest = [part(t, d) for t, d in zip(x, dx, strict=True)], period, dof
    given = neg.data_ptr(), low.data_ptr(), dneg.data_ptr()
    dfactor = native.C.student_lse_backward(numbers(x[0], scale, multiplier, False), *rest, *given)
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, torch.full_like(scale, multiplier * dfactor)


def nearest(x, y, skip, normalize):
    same = (x.data_ptr(), x.shape, x.stride()) == (y.data_ptr(), y.shape, y.stride())
    x = rows(x)
    y = x if same else rows(y)
    index = torch.empty(x.shape[0], dtype=torch.int64)
    native.C.nearest(numbers(x, None, 1.0, normalize), part(x), part(y), skip, index.data_ptr())
    return index
