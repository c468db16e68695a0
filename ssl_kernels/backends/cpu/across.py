"""Row and column reductions of one set of embeddings against another."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import numbers, part, results_dtype, rows

NOBODY = 0, 0, 0


def cross_lse(x, y, scale, multiplier, offset, normalize, columns):
    x, y = rows(x), [rows(t) for t in y]
    positives = 0 if offset is None else x.shape[0]
    ours = _side(x, x.shape[0], positives)
    theirs = _side(x, sum(t.shape[0] for t in y) if columns else 0, positives if columns else 0)
    to = _addresses(ours), _addresses(theirs) if columns else NOBODY
    native.C.cross_lse(numbers(x, scale, multiplier, normalize), part(x), [part(t) for t in y], offset, *to)
    return *ours, *theirs


def cross_lse_backward(
    dneg, dpos, dneg_y, dpos_y, x, y, scale, multiplier, offset, normalize, neg, top, neg_y, top_y, want_x, want_y
):
    x, y = rows(x), [rows(t) for t in y]
    dx = torch.empty(x.shape if want_x else (0,), dtype=x.dtype)
    dy = [torch.empty(t.shape if want_y else (0,), dtype=t.dtype) for t in y]
    columns = len(neg_y) > 0
    parts = [part(t, d if want_y else None) for t, d in zip(y, dy, strict=True)]
    dneg, dneg_y = dneg.contiguous(), dneg_y.contiguous()
    dlogit = (dpos + dpos_y if columns else dpos.contiguous()) if offset is not None else None
    dfactor = native.C.cross_lse_backward(
        numbers(x, scale, multiplier, normalize),
        part(x, dx if want_x else None),
        parts,
        offset,
        (neg.data_ptr(), 0, top.data_ptr()),
        (neg_y.data_ptr(), 0, top_y.data_ptr()) if columns else NOBODY,
        dneg.data_ptr(),
        dneg_y.data_ptr(),
        0 if dlogit is None else dlogit.data_ptr(),
    )
    return dx, dy, neg.new_zeros(()) if scale is None else torch.full_like(scale, multiplier * dfactor)


def cross_softplus_mean(x, y, scale, multiplier, offset, normalize):
    x, y = rows(x), [rows(t) for t in y]
    dx, *dy = (torch.empty(t.shape, dtype=t.dtype) for t in (x, *y))
    parts = [part(t, d) for t, d in zip((x, *y), (dx, *dy), strict=True)]
    mean, dfactor = native.C.cross_softplus_mean(numbers(x, scale, multiplier, normalize), parts[0], parts[1:], offset)
    loss = torch.tensor(mean, dtype=results_dtype(x))
    return loss, torch.zeros_like(loss) if scale is None else torch.full_like(scale, multiplier * dfactor), dx, dy


def attend_lse(x, y, scale, multiplier, offset, normalize):
    x, y = rows(x), [rows(t) for t in y]
    ours = _side(x, x.shape[0], 0 if offset is None else x.shape[0])
    mean = ours[0].new_empty(x.shape)
    arguments = part(x), [part(t) for t in y], offset, _addresses(ours), mean.data_ptr()
    native.C.attend_lse(numbers(x, scale, multiplier, normalize), *arguments)
    return *ours, mean


def _side(x, length, positives):
    neg = torch.empty(length, dtype=results_dtype(x))
    return neg, neg.new_empty(positives), torch.empty_like(neg)


def _addresses(side):
    return tuple(t.data_ptr() for t in side)
