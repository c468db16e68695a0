r"""BYOL's loss (Grill et al. 2020, https://arxiv.org/abs/2006.07733, eq. 2).

The squared distance, on the unit sphere, between what the online network predicts and what the target network
projects, which gets no gradient:

.. math:: \mathcal L = \frac1N \sum_i \big| \hat p_i - \hat z_i \big|^2 = 2 - \frac2N \sum_i \cos(p_i, z_i).

The method adds the same with the views exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import check_views, cosine

__all__ = ["BYOLLoss", "byol_loss", "byol_reference"]


def byol_loss(p: Tensor, z: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Mean squared distance of predictions from targets on the unit sphere (BYOL), one reading of both.

    Args:
        p: predictions of the online network for one view, ``[N, D]``, float32/64, bfloat16 or float16; normalised here.
        z: projections of the target network for the other view, alike; detached here.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the rows, from 0 to 4, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes differ, not 2-d, N < 1, dtypes or devices differ, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733, eq. 2. Reference: :func:`byol_reference`.
    """
    check_views([p, z], ("p", "z"))
    return 2 - 2 * cosine(p, z.detach(), backend=backend).mean()


def byol_reference(p: Tensor, z: Tensor) -> Tensor:
    """The same as :func:`byol_loss`, written as the paper has it."""
    check_views([p, z], ("p", "z"))
    p, z = (F.normalize(x, dim=1, eps=1e-8) for x in (p, z.detach()))
    return 2 - 2 * (p * z).sum(1).mean()


class BYOLLoss(nn.Module):
    """:func:`byol_loss` as a module: ``BYOLLoss()(p1, z2) + BYOLLoss()(p2, z1)`` is the method's loss.

    Args:
        backend: as in :func:`byol_loss`.
    """

    def __init__(self, *, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, p: Tensor, z: Tensor) -> Tensor:
        return byol_loss(p, z, backend=self.backend)


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"p": torch.randn(n, d, **tensor), "z": torch.randn(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    z = torch.randn(n, d, **tensor)
    return {"p": z + 0.5 * torch.randn(n, d, **tensor), "z": z}


SPEC = LossSpec(
    name="byol",
    fused=byol_loss,
    reference=byol_reference,
    module=BYOLLoss,
    inputs=_inputs,
    trained=_trained,
    features=("p",),
    cross_entropy=False,
)
