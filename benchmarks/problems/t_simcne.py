"""t-SimCNE: two views of ``n`` samples in the plane, by the Cauchy kernel of their distances."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem


def in_blocks(z1: Tensor, z2: Tensor, temperature: float, dof: float) -> Tensor:
    """As the authors' code has it: three matrices of distances, put one beside the other."""
    off = torch.eye(len(z1), dtype=torch.bool, device=z1.device)
    s11, s12, s22 = (1 / (_distances(a, b).square() / temperature + 1) for a, b in ((z1, z1), (z1, z2), (z2, z2)))
    alignment = s12.diagonal().log().mean()
    s11, s22 = s11.masked_fill(off, 0.0), s22.masked_fill(off, 0.0)
    first = torch.hstack((s11, s12)).sum(1).log().mean()
    second = torch.hstack((s12.T, s22)).sum(1).log().mean()
    return (first + second) / 2 - alignment


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # cdist has no 16 bits on a CPU
    return torch.cdist(a, b) if a.dtype in (torch.float32, torch.float64) else torch.cdist(a.float(), b.float())


def by_columns(z1: Tensor, z2: Tensor, temperature: float, dof: float) -> Tensor:
    """One matrix, from the differences of each coordinate, with as few sweeps as eager PyTorch allows."""
    z = torch.cat([z1, z2])
    z = (z if z.dtype == torch.float64 else z.float()) / temperature**0.5
    d2 = sum(((c[:, None] - c).square() for c in z.unbind(1)), start=torch.ones((), device=z.device))
    positive = (z[: len(z1)] - z[len(z1) :]).square().sum(1)
    return (d2.reciprocal().sum(1) - 1).log().mean() + positive.log1p().mean()


PROBLEMS = {
    "t_simcne": Problem(
        "t_simcne",
        rivals={EAGER: in_blocks, "eager, by columns": by_columns},
        compiled=(EAGER, "eager, by columns"),
        sizes=((256, 2), (1024, 2), (4096, 2)),
        quick=((256, 2),),
        gpu=((4096, 2), (32768, 2)),
        units=(0.5, 1.5),
        exponentials=(0, 0),
    )
}
