"""SupCon: two views of ``n`` samples, in ten classes, and every sample a class of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem


def masked(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """As the authors' code has it: masks of float, exponentials without a logsumexp, everything an N x N array."""
    mask = torch.eq(labels[:, None], labels[None]).to(features.dtype)
    z = F.normalize(features, dim=1)
    logits = z @ z.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True)[0].detach()
    others = torch.scatter(torch.ones_like(mask), 1, torch.arange(len(z), device=z.device)[:, None], 0)
    mask = mask * others
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    positives = mask.sum(1)
    rows = -(mask * log_prob).sum(1) / torch.where(positives < 1e-6, 1, positives)
    return rows.sum() / (positives > 0).sum()


def by_class_sums(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Positives from the sum of each class, and as few sweeps over the matrix as eager PyTorch allows."""
    z = F.normalize(features, dim=1)
    logits = z @ (z / temperature).T
    logits.diagonal().fill_(float("-inf"))
    sums = z.new_zeros(len(z), z.shape[1]).index_add(0, labels, z)
    count = labels.bincount(minlength=len(z))[labels] - 1
    positive = ((z * sums[labels]).sum(1) - (z * z).sum(1)) / count.clamp_min(1) / temperature
    asks = count > 0
    return torch.where(asks, logits.logsumexp(1) - positive, 0.0).sum() / asks.sum()


def _with_labels(classes: int | None) -> Callable[..., dict[str, Any]]:
    def inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
        labels = torch.arange(2 * n, device=tensor["device"]) % (classes or n)
        return {"features": torch.randn(2 * n, d, **tensor), "labels": labels, "temperature": 0.1}

    return inputs


def _problem(classes: int | None) -> Problem:
    return Problem(
        "sup_con",
        rivals={EAGER: masked, "eager, class sums": by_class_sums},
        compiled=(EAGER, "eager, class sums"),
        sizes=((256, 128), (1024, 128), (4096, 128)),
        inputs=_with_labels(classes),
        gpu=((16384, 128),),
        synchronise=("eager, class sums",),  # bincount asks for the largest label
    )


PROBLEMS = {"sup_con, 10 classes": _problem(10), "sup_con, n classes": _problem(None)}
