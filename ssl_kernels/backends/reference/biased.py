"""Log-sum-exp with a bias, of the whole matrix at once."""

from __future__ import annotations

import torch


def biased_lse(logits, bias, multiplier, dim):
    s = multiplier * logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return (s if bias is None else s + (bias if dim == 1 else bias[:, None])).logsumexp(dim)
