"""What spreads ``n`` rows over the sphere: KoLeo, by the nearest neighbour, and uniformity, by all pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem
from ssl_kernels import koleo_reference


def of_pairs(x: Tensor, t: float = 2.0) -> Tensor:
    """As the authors have it: the distances of all pairs."""
    z = F.normalize(x, dim=1)
    z = z if z.dtype == torch.float64 else z.float()  # pdist has no 16 bits
    return torch.pdist(z).square().mul(-t).exp().mean().log()


def of_products(x: Tensor, t: float = 2.0) -> Tensor:
    """A log-sum-exp of cosines, with as few sweeps over the matrix as eager PyTorch allows."""
    z = F.normalize(x, dim=1)
    logits = 2 * t * (z @ z.T)
    logits.diagonal().fill_(float("-inf"))
    return torch.logsumexp(logits.flatten(), 0) - 2 * t - math.log(len(z) * (len(z) - 1))


PROBLEMS = {
    "koleo": Problem(
        "koleo",
        rivals={EAGER: koleo_reference},
        sizes=((1024, 1024), (4096, 128)),
        quick=((256, 64),),
        entries=lambda n: n * n,
        gpu=((2048, 1024), (16384, 128)),
        units=(0.5, 0.5),  # who is nearest has no gradient
        exponentials=(0, 0),
    ),
    "uniformity": Problem(
        "uniformity",
        rivals={EAGER: of_pairs, "eager, by products": of_products},
        compiled=("eager, by products",),
        sizes=((1024, 128), (4096, 128)),
        quick=((256, 64),),
        entries=lambda n: n * n,
        gpu=((16384, 128),),
    ),
}
