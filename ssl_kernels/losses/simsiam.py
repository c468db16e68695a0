r"""SimSiam's loss (Chen & He 2021, https://arxiv.org/abs/2011.10566, eq. 1 and 3).

The negative cosine between the prediction of one view and the projection of the other, which gets no gradient:

.. math:: \mathcal D(p, z) = -\frac1N \sum_i \cos(p_i, \mathrm{stopgrad}(z_i)).

The method takes the mean of this and the same with the views exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_kernels.losses.negative_cosine import negative_cosine_reference
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import check_views, cosine

__all__ = ["SimSiamLoss", "simsiam_loss", "simsiam_reference"]


def simsiam_loss(p: Tensor, z: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Mean negative cosine of predictions with projections that stand still (SimSiam), one reading of both.

    Args:
        p: predictions for one view, ``[N, D]``, float32/64, bfloat16 or float16; normalised here.
        z: projections of the other view, alike; detached here.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the rows, from -1 to 1, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes differ, not 2-d, N < 1, dtypes or devices differ, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Chen & He 2021, https://arxiv.org/abs/2011.10566, eq. 1. Reference: :func:`simsiam_reference`.
    """
    check_views([p, z], ("p", "z"))
    return -cosine(p, z.detach(), backend=backend).mean()


def simsiam_reference(p: Tensor, z: Tensor) -> Tensor:
    """The same as :func:`simsiam_loss`, written as the paper's pseudo-code has it."""
    check_views([p, z], ("p", "z"))
    return negative_cosine_reference(p, z.detach())


class SimSiamLoss(nn.Module):
    """:func:`simsiam_loss` as a module: ``(SimSiamLoss()(p1, z2) + SimSiamLoss()(p2, z1)) / 2`` is the method's loss.

    Args:
        backend: as in :func:`simsiam_loss`.
    """

    def __init__(self, *, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, p: Tensor, z: Tensor) -> Tensor:
        return simsiam_loss(p, z, backend=self.backend)


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"p": torch.randn(n, d, **tensor), "z": torch.randn(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    z = torch.randn(n, d, **tensor)
    return {"p": z + 0.5 * torch.randn(n, d, **tensor), "z": z}


SPEC = LossSpec(
    name="simsiam",
    fused=simsiam_loss,
    reference=simsiam_reference,
    module=SimSiamLoss,
    inputs=_inputs,
    trained=_trained,
    features=("p",),
    cross_entropy=False,
)
