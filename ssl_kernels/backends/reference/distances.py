"""Points: log-sum-exp by their distances, and nearest neighbours."""

from __future__ import annotations

import math

import torch

from ssl_kernels.backends.reference.rows import as_factor, dtype_of_products, unit
from ssl_kernels.backends.reference.within import same_sample


def _logits(x, scale, multiplier, dof, period):
    """The points, T (NaN for a negative one), the squared distances and the logits, -inf between rows of one sample."""
    # float64 where the device has it: the two parts of the gradients nearly cancel
    z, _ = unit(x if x[0].device.type == "mps" else [t.double() for t in x], False)
    factor = as_factor(scale, multiplier, z)
    factor = torch.where(factor >= 0, factor, torch.nan)
    d2 = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    s = -factor * d2 if math.isinf(dof) else -(dof + 1) / 2 * torch.log1p(2 * factor / dof * d2)
    return z, factor, d2, s.masked_fill(same_sample(len(z), period, z.device), float("-inf"))


def student_lse(x, scale, multiplier, dof, period):
    exact = _logits(x, scale, multiplier, dof, period)[-1].logsumexp(1)
    neg = exact.to(torch.float64 if x[0].dtype == torch.float64 else torch.float32)
    return neg, torch.where(neg.isinf(), 0.0, exact - neg).to(neg.dtype)


def student_lse_backward(dneg, x, scale, multiplier, dof, period, neg, low):
    z, factor, d2, s = _logits(x, scale, multiplier, dof, period)
    # a row without negatives (neg = -inf) has nobody to send a gradient to
    p = torch.where(neg[:, None] == float("-inf"), 0.0, s.softmax(1))
    slope = 1.0 if math.isinf(dof) else (dof + 1) / (dof + 2 * factor * d2)  # of the logits, over -T
    dd2 = dneg[:, None] * p * slope
    dfactor = -(dd2 * d2).sum()
    dd2 = -factor * (dd2 + dd2.T)
    # one coordinate at a time: no [M, M, D], and differences before products, as the distances
    dz = torch.stack([2 * (dd2 * (c[:, None] - c[None, :])).sum(1) for c in z.T], 1)
    dx = [part.clone() for part in dz.to(x[0].dtype).split([len(t) for t in x])]
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, (multiplier * dfactor).to(scale.dtype).reshape(scale.shape)


def nearest(x, y, skip, normalize):
    (z, _), (w, _) = (unit([t.to(dtype_of_products(t))], normalize) for t in (x, y))
    s = z @ w.T
    if skip is not None:
        i = torch.arange(len(z), device=z.device)
        own = torch.arange(len(w), device=z.device)[None, :] == (i + skip)[:, None]
        s = s.masked_fill(own, float("-inf"))
    return s.argmax(1)
