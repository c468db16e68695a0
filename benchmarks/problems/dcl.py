"""DCL: two views of ``n`` samples, without the positive in the denominator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem


def in_two_halves(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """As the field's library of methods has it: a direction at a time, a sample's own columns taken out by a mask."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    return (_half(z1, z2, temperature) + _half(z2, z1, temperature)) / 2


def _half(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    n = len(a)
    same = a @ a.T / temperature
    other = a @ b.T / temperature
    off = ~torch.eye(n, dtype=torch.bool, device=a.device)
    negatives = torch.cat([same[off].view(n, -1), other[off].view(n, -1)], dim=1)
    return (negatives.logsumexp(1) - other.diagonal()).mean()


def without_copies(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """With as few sweeps over the matrix as eager PyTorch allows."""
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ (z / temperature).T
    for offset in (0, n, -n):
        logits.diagonal(offset).fill_(float("-inf"))
    return logits.logsumexp(1).mean() - (z[:n] * z[n:]).sum(1).mean() / temperature


PROBLEMS = {
    "dcl": Problem(
        "dcl",
        rivals={EAGER: in_two_halves, "eager, few sweeps": without_copies},
        compiled=(EAGER, "eager, few sweeps"),
        sizes=((256, 128), (1024, 128), (4096, 128)),
        gpu=((16384, 128),),
        synchronise=(EAGER,),  # boolean masks ask how many elements they have
    )
}
