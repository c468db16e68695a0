"""Row and column reductions of one set of embeddings against another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels.backends.reference.rows import as_factor, gradients, unit

LOWEST = float("-inf")


def _positives(s: Tensor, offset: int | None) -> Tensor:
    """A mask of the entries ``(i, i + offset)``."""
    mask = torch.zeros_like(s, dtype=torch.bool)
    if offset is not None:
        mask[:, offset : offset + len(s)].fill_diagonal_(True)
    return mask


def _relative(neg: Tensor, pos: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor]:
    """``neg`` and ``pos`` less the larger of the two; ``pos`` belongs to the entries ``at`` of ``neg``."""
    top = neg.clone()
    if len(pos):
        top[at] = torch.maximum(top[at], pos)
    top = torch.where(top == LOWEST, 0.0, top)
    return neg - top, pos - top[at] if len(pos) else pos, top


def cross_lse(x, y, scale, multiplier, offset, normalize, columns):
    (z, _), (w, _) = unit([x], normalize), unit(y, normalize)
    s = z @ w.T * as_factor(scale, multiplier, z)
    negatives = s.masked_fill(_positives(s, offset), LOWEST)
    pos = s.new_empty(0) if offset is None else s.diagonal(offset).clone()
    rows = _relative(negatives.logsumexp(1), pos, slice(0, len(s)))
    if not columns:
        return *rows, s.new_empty(0), s.new_empty(0), s.new_empty(0)
    return *rows, *_relative(negatives.logsumexp(0), pos.clone(), slice(offset or 0, (offset or 0) + len(s)))


def cross_lse_backward(
    dneg, dpos, dneg_y, dpos_y, x, y, scale, multiplier, offset, normalize, neg, top, neg_y, top_y, want_x, want_y
):
    (z, n), (w, m) = unit([x], normalize), unit(y, normalize)
    factor = as_factor(scale, multiplier, z)
    products = z @ w.T
    s = products * factor
    ds = dneg[:, None] * ((s - top[:, None]) - neg[:, None]).exp()
    if len(neg_y):
        ds = ds + dneg_y * ((s - top_y) - neg_y).exp()
    mask = _positives(s, offset)
    # an empty set of negatives (neg = -inf) has none to send anything to, and only positives are not among them
    ds = ds.masked_fill(mask, 0.0)
    if offset is not None:
        ds[mask] = (dpos + dpos_y if len(dpos_y) else dpos).to(ds.dtype)
    dfactor = (ds * products).sum()
    dx = gradients(factor * (ds @ w), z, n, normalize, [x])[0] if want_x else x.new_empty(0)
    dy = gradients(factor * (ds.T @ z), w, m, normalize, y) if want_y else [t.new_empty(0) for t in y]
    if scale is None:
        return dx, dy, neg.new_zeros(())
    return dx, dy, (multiplier * dfactor).to(scale.dtype).reshape(scale.shape)


def attend_lse(x, y, scale, multiplier, offset, normalize):
    (z, _), (w, _) = unit([x], normalize), unit(y, normalize)
    s = z @ w.T * as_factor(scale, multiplier, z)
    negatives = s.masked_fill(_positives(s, offset), LOWEST)
    pos = s.new_empty(0) if offset is None else s.diagonal(offset).clone()
    neg, pos, top = _relative(negatives.logsumexp(1), pos, slice(0, len(s)))
    p = ((negatives - top[:, None]) - neg[:, None]).exp()
    p = torch.where(neg[:, None] == LOWEST, 0.0, p)
    return neg, pos, top, p @ w


def pair_softplus(x, y, scale, bias, multiplier, offset, gradient):
    (z, _), (w, _) = unit([x], False), unit([y], False)
    factor = as_factor(scale, multiplier, z)
    products = z @ w.T
    s = products * factor
    if bias is not None:
        s = s + bias.to(s.dtype).reshape(())
    total = F.softplus(s, 1.0, 40.0).sum()
    ds = torch.sigmoid(s)
    if offset is not None:
        # softplus(-s) = softplus(s) - s, but exact where the positive is nearly certain
        mask = _positives(s, offset)
        total = F.softplus(torch.where(mask, -s, s), 1.0, 40.0).sum()
        ds = torch.where(mask, -torch.sigmoid(-s), ds)
    if not gradient:
        return total, total.new_empty(0), total.new_empty(0), total.new_zeros(()), total.new_zeros(())
    return total, factor * (ds @ w), factor * (ds.T @ z), multiplier * (ds * products).sum(), ds.sum()
