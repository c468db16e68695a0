"""Cosines of paired rows."""

from __future__ import annotations

import torch


def cosine(x, y, eps):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_norm, y_norm = (torch.linalg.vector_norm(t.to(wide), dim=1) for t in (x, y))
    u, v = (t.to(wide) / n.clamp_min(eps)[:, None] for t, n in ((x, x_norm), (y, y_norm)))
    return (u * v).sum(1), x_norm, y_norm


def cosine_backward(dvalue, x, y, value, x_norm, y_norm, eps, want_x, want_y):
    u, v = (t.to(n.dtype) / n.clamp_min(eps)[:, None] for t, n in ((x, x_norm), (y, y_norm)))

    def gradient(wanted, a, norm, mine, other):
        if not wanted:
            return a.new_empty(0)
        held = (norm < eps)[:, None]
        d = dvalue[:, None] / norm.clamp_min(eps)[:, None] * (other - torch.where(held, 0, value[:, None] * mine))
        if a.dtype in (torch.float16, torch.bfloat16):  # of a row of zeros: finite in float32, and kept so
            most = torch.finfo(a.dtype).max
            d = torch.where(held, d.clamp(-most, most), d)
        return d.to(a.dtype)

    return gradient(want_x, x, x_norm, u, v), gradient(want_y, y, y_norm, v, u)
