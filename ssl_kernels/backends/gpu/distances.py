"""The launches for a set of points under similarities that fall off with the distance."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device

CAUCHY, STUDENT, GAUSSIAN = 0, 1, 2


class Points:
    """What forward and backward share: the points coordinate by coordinate, ``[D, M]``, and the numbers of a call."""

    def __init__(self, x: list[Tensor], scale: Tensor | None, multiplier: float, dof: float, period: int) -> None:
        self.dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32
        self.z = torch.cat([t.to(self.dtype) for t in x]).T.contiguous()
        self.width, self.rows = self.z.shape
        self.period = period
        self.scale, self.multiplier = scale, multiplier
        self.dof = 1.0 if math.isinf(dof) else dof  # a Gaussian's kernels do not read it
        self.slope = 1.0 if math.isinf(dof) else (dof + 1) / dof  # of the logits over -T, at the nearest
        self.falloff = CAUCHY if dof == 1 else GAUSSIAN if math.isinf(dof) else STUDENT

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.z.device)


class PointKernels(Protocol):
    def point_sums(self, p: Points, neg: Tensor, low: Tensor) -> None:
        """Row log-sum-exp over the points of other samples, and what its rounding lost."""

    def point_gradients(
        self, p: Points, neg: Tensor, low: Tensor, dneg: Tensor, received: Tensor, moments: Tensor
    ) -> None:
        """``received[d, i] = sum_j A_ij (z_i - z_j)_d`` and ``moments[i] = sum_j A_ij d2_ij``, A the weights."""


def student_lse(
    kernels: PointKernels, x: list[Tensor], scale: Tensor | None, multiplier: float, dof: float, period: int
) -> tuple[Tensor, Tensor]:
    with on_device(x[0]):
        p = Points(x, scale, multiplier, dof, period)
        neg, low = p.empty(p.rows), p.empty(p.rows)
        kernels.point_sums(p, neg, low)
    return neg, low


def student_lse_backward(
    kernels: PointKernels, dneg: Tensor, x: list[Tensor], scale: Tensor | None, multiplier: float, dof: float,
    period: int, neg: Tensor, low: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    with on_device(x[0]):
        p = Points(x, scale, multiplier, dof, period)
        received, moments = p.empty(p.width, p.rows), p.empty(p.rows)
        kernels.point_gradients(p, neg, low, dneg.contiguous(), received, moments)
        dfactor = -0.5 * p.slope * moments.sum()  # a pair was met from both its sides
        # d logit / d d2 = -T slope / u, d d2 / d z_i = 2 (z_i - z_j), and z_j has the same from its side
        factor = -2 * p.slope * multiplier * (1.0 if scale is None else scale.to(p.dtype).reshape(()))
        dz = (received * factor).T.to(x[0].dtype)
        dx = [part.contiguous() for part in dz.split([len(t) for t in x])]
    if scale is None:
        return dx, torch.zeros_like(dfactor)
    return dx, (multiplier * dfactor).to(scale.dtype).reshape(scale.shape)
