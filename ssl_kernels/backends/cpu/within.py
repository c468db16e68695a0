"""Row log-sum-exp of a set of embeddings against itself: half of the matrix serves both its sides."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import numbers, part, results_dtype, rows


def self_lse(x, scale, multiplier, period, normalize, coarse=False):
    x = [rows(t) for t in x]
    count = sum(t.shape[0] for t in x)
    neg = torch.empty(count, dtype=results_dtype(x[0]))
    pos, top = neg.new_empty((count // period - 1, count)), torch.empty_like(neg)
    out = neg.data_ptr(), pos.data_ptr(), top.data_ptr()
    native.C.self_lse(numbers(x[0], scale, multiplier, normalize, coarse), [part(t) for t in x], period, *out)
    return neg, pos, top


def self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, coarse=False):
    x = [rows(t) for t in x]
    dx = [torch.empty(t.shape, dtype=t.dtype) for t in x]
    parts = [part(t, d) for t, d in zip(x, dx, strict=True)]
    dneg, dpos = dneg.contiguous(), dpos.contiguous()
    given = neg.data_ptr(), top.data_ptr(), dneg.data_ptr(), dpos.data_ptr()
    dfactor = native.C.self_lse_backward(numbers(x[0], scale, multiplier, normalize, coarse), parts, period, *given)
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, torch.full_like(scale, multiplier * dfactor)


def softplus_mean(x, scale, multiplier, period):
    x = [rows(t) for t in x]
    dx = [torch.empty(t.shape, dtype=t.dtype) for t in x]
    parts = [part(t, d) for t, d in zip(x, dx, strict=True)]
    mean, dfactor = native.C.self_lse_softplus_mean(numbers(x[0], scale, multiplier, True), parts, period)
    loss = torch.tensor(mean, dtype=results_dtype(x[0]))
    return loss, torch.zeros_like(loss) if scale is None else torch.full_like(scale, multiplier * dfactor), dx
