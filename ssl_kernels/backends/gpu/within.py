"""The launches for a set of embeddings against itself."""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device
from ssl_kernels.backends.gpu.kernels import Kernels
from ssl_kernels.backends.gpu.launch import Problem
from ssl_kernels.backends.gpu.passes import add_scale, combine, finish, receive, sum_negatives, weigh


def self_lse(
    kernels: Kernels, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int, normalize: bool,
    coarse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with on_device(x[0]):
        p = Problem(kernels, scale, multiplier, period, normalize, x, precision="high" if coarse else None)
        sums, _ = sum_negatives(p)
        return combine(p, p.x, p.y, period, sums, p.empty(p.x.rows // period - 1, p.x.rows))


def self_lse_backward(
    kernels: Kernels, dneg: Tensor, dpos: Tensor, x: list[Tensor], scale: Tensor | None, multiplier: float, period: int,
    normalize: bool, neg: Tensor, top: Tensor, coarse: bool = False,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    with on_device(x[0]):
        p = Problem(kernels, scale, multiplier, period, normalize, x, precision="high" if coarse else None)
        p.find_largest()
        weights, _, unit = weigh(p, (neg, top, dneg))
        received = receive(p, p.x, p.y, period, weights, weights)
        dx, along = finish(p, p.x, p.y, period, received, unit, dpos)
        return dx, add_scale(p, along)
