"""Row log-sum-exp of a set of embeddings against itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.reference.rows import as_factor, gradients, unit


def same_sample(rows: int, period: int, device: torch.device) -> Tensor:
    i = torch.arange(rows, device=device)
    return (i[:, None] - i[None, :]) % period == 0


def _twins(rows: int, period: int, device: torch.device) -> Tensor:
    offsets = torch.arange(1, rows // period, device=device)[:, None] * period
    return (torch.arange(rows, device=device)[None, :] + offsets) % rows


def self_lse(x, scale, multiplier, period, normalize, coarse=False):
    z, _ = unit(x, normalize)
    s = z @ z.T * as_factor(scale, multiplier, z)
    rows = len(s)
    neg = s.masked_fill(same_sample(rows, period, s.device), float("-inf")).logsumexp(1)
    pos = s[torch.arange(rows, device=s.device), _twins(rows, period, s.device)]
    top = torch.cat([neg[None], pos]).amax(0)
    top = torch.where(top == float("-inf"), 0.0, top)  # a row of nothing at all
    return neg - top, pos - top, top


def self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, coarse=False):
    z, n = unit(x, normalize)
    factor = as_factor(scale, multiplier, z)
    s = z @ z.T * factor
    rows = len(s)
    # d loss / d s, entry by entry; a row without negatives (neg = -inf) has none to send anything to
    p = (s - (top + neg)[:, None]).exp().masked_fill(same_sample(rows, period, s.device), 0.0)
    ds = dneg[:, None] * p
    ds[torch.arange(rows, device=s.device), _twins(rows, period, s.device)] = dpos.to(ds.dtype)
    # not through s / factor, so that a scale of zero keeps its gradient
    dfactor = (ds * (z @ z.T)).sum()
    dx = gradients(factor * ((ds + ds.T) @ z), z, n, normalize, x)
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, (multiplier * dfactor).to(scale.dtype).reshape(scale.shape)
