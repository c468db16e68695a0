"""Rows on the unit sphere, for what a loss computes beside the waist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_kernels.ops import accumulate_dtype
from ssl_kernels.ops.library import once

EPS = 1e-12  # as torch.nn.functional.normalize


def unit_rows(x: Sequence[Tensor]) -> Tensor:
    """The rows of all ``x`` one below the other, divided by ``max(norm, 1e-12)``, in float32 at least.

    As ``torch.nn.functional.normalize``, but a row of zeros in 16 bits gets a finite gradient, and the inputs
    themselves are what is kept for backward.
    """
    return _UnitRows.apply(*x)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *x):
        wide = [t.to(accumulate_dtype(t.dtype)) for t in x]
        z = torch.cat(wide) if len(wide) > 1 else wide[0]
        norms = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        ctx.save_for_backward(norms, *x)
        return z / norms.clamp_min(EPS)  # not in place: compiled by torch 2.11 that has no gradient, without a word

    @staticmethod
    def backward(ctx, g):
        return once(_gradients, g, *ctx.saved_tensors)


def _gradients(g: Tensor, norms: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
    sizes = [len(t) for t in x]
    grads = []
    for part, n, t in zip(g.split(sizes), norms.split(sizes), x, strict=True):
        by = n.clamp_min(EPS)
        z = t.to(g.dtype) / by
        along = torch.where(n < EPS, 0.0, (part * z).sum(1, keepdim=True))  # below that nothing is projected away
        dx = torch.addcmul(part, z, along, value=-1).div_(by)
        if t.dtype in (torch.float16, torch.bfloat16):  # the huge gradient of a row of zeros stays finite
            most = torch.finfo(t.dtype).max
            dx = torch.where(n < EPS, dx.clamp(-most, most), dx)
        grads.append(dx.to(t.dtype))
    return tuple(grads)
