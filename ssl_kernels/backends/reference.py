"""The definition, written plainly in PyTorch: it stores the whole matrix and serves every device.

Sums run in float32 for half precision and in the input's own precision otherwise. Tests compare the other backends
with this one in float64; users get it, with a warning, where nothing faster is available.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-12
DEVICES = ("cpu", "cuda", "mps", "xpu")


def why_not() -> str | None:
    return None


def _unit(x: list[Tensor], normalize: bool) -> tuple[Tensor, Tensor]:
    z = torch.cat(list(x))
    z = z.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
    n = torch.linalg.vector_norm(z, dim=1, keepdim=True) if normalize else torch.ones_like(z[:, :1])
    return z / n.clamp_min(EPS), n


def _logits(z: Tensor, scale: Tensor | None, multiplier: float) -> tuple[Tensor, Tensor]:
    factor = torch.as_tensor(multiplier, dtype=z.dtype, device=z.device)
    if scale is not None:
        factor = factor * scale.to(z.dtype).reshape(())
    return z @ z.T * factor, factor


def _same_sample(rows: int, period: int, device: torch.device) -> Tensor:
    i = torch.arange(rows, device=device)
    return (i[:, None] - i[None, :]) % period == 0


def _twins(rows: int, period: int, device: torch.device) -> Tensor:
    offsets = torch.arange(1, rows // period, device=device)[:, None] * period
    return (torch.arange(rows, device=device)[None, :] + offsets) % rows


def self_lse(x, scale, multiplier, period, normalize):
    z, _ = _unit(x, normalize)
    s, _ = _logits(z, scale, multiplier)
    rows = len(s)
    neg = s.masked_fill(_same_sample(rows, period, s.device), float("-inf")).logsumexp(1)
    pos = s[torch.arange(rows, device=s.device), _twins(rows, period, s.device)]
    top = torch.cat([neg[None], pos]).amax(0)
    top = torch.where(top == float("-inf"), 0.0, top)  # a row of nothing at all
    return neg - top, pos - top, top


def self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top):
    z, n = _unit(x, normalize)
    s, factor = _logits(z, scale, multiplier)
    rows = len(s)
    # d loss / d s, entry by entry; a row without negatives (neg = -inf) has none to send anything to
    p = ((s - top[:, None]) - neg[:, None]).exp().masked_fill(_same_sample(rows, period, s.device), 0.0)
    ds = dneg[:, None] * p
    ds[torch.arange(rows, device=s.device), _twins(rows, period, s.device)] = dpos.to(ds.dtype)
    # not through s / factor, so that a scale of zero keeps its gradient
    dfactor = (ds * (z @ z.T)).sum()
    g = factor * ((ds + ds.T) @ z)
    if normalize:
        through = g - (g * z).sum(1, keepdim=True) * z
        g = torch.where(n > EPS, through / n.clamp_min(EPS), g / EPS)
        if x[0].dtype in (torch.float16, torch.bfloat16):
            top = torch.finfo(x[0].dtype).max
            g = torch.where(n > EPS, g, g.clamp(-top, top))
    dx = [part.clone() for part in g.to(x[0].dtype).split([len(t) for t in x])]
    if scale is None:
        return dx, neg.new_zeros(())
    return dx, (multiplier * dfactor).to(scale.dtype).reshape(scale.shape)
