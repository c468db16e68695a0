"""Points under similarities that fall off with the distance, by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.cuda.native import C, address, number, stream
from ssl_kernels.backends.gpu.distances import Points


def point_sums(p: Points, neg: Tensor, low: Tensor) -> None:
    C.point_sums(_points(p), address(neg), address(low), stream(p.z.device))


def point_gradients(p: Points, neg: Tensor, low: Tensor, dneg: Tensor, received: Tensor, moments: Tensor) -> None:
    near, weight = p.empty(p.rows), p.empty(p.rows)
    C.point_gradients(_points(p), *map(address, (neg, low, dneg, near, weight, received, moments)), stream(p.z.device))


def _points(p: Points) -> tuple[object, ...]:
    double = p.dtype == torch.float64
    return address(p.z), double, p.rows, p.width, p.period, p.falloff, number(p.scale), p.multiplier, p.dof
