r"""KoLeo: spreads the rows of a batch, by the distance of each to its nearest neighbour.

With ``z`` the rows on the unit sphere and :math:`n(i) = \arg\max_{j \ne i} z_i \cdot z_j`,

.. math:: \mathcal L = -\frac1N \sum_i \log\bigl(\lVert z_i - z_{n(i)} + \varepsilon \rVert_p + \varepsilon\bigr),

the Kozachenko-Leonenko estimate of an entropy, up to its sign and a constant (Sablayrolles et al. 2019,
https://arxiv.org/abs/1806.03198; in DINOv2, https://arxiv.org/abs/2304.07193). Who is nearest has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.gather import check_gathering, gather_rows, world_size
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import accumulate_dtype, check_not_empty, check_rows, log_distance, nearest

__all__ = ["KoLeoLoss", "koleo_loss", "koleo_reference"]


def koleo_loss(
    x: Tensor,
    p: float = 2.0,
    eps: float = 1e-8,
    *,
    gather_distributed: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Minus the mean logarithm of the distance to the nearest neighbour (KoLeo), O(N D) memory.

    Args:
        x: ``[N, D]``, float32/64, bfloat16 or float16; normalised here. Distances are those of float64.
        p: the norm of the differences.
        eps: added to every difference and to the distance, as ``torch.nn.PairwiseDistance`` and its users do.
        gather_distributed: look for neighbours among the rows of all processes, each of which has N.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the rows, a float32 scalar (float64 for float64). A single row is its own neighbour.

    Raises:
        ValueError: not 2-d, no rows, ``p`` or ``eps`` not above 0, unknown or unavailable backend.
        TypeError: not a floating-point tensor.

    Sablayrolles et al. 2019, https://arxiv.org/abs/1806.03198. Reference: :func:`koleo_reference`. Differentiable
    once; a second derivative raises (the reference has all of them).
    """
    _check(x, p, eps)
    rows, first = x, 0
    if gather_distributed and world_size() > 1:
        # gathered in float32, so that gradients from other processes are summed up in it
        rows, first = gather_rows(x.to(accumulate_dtype(x.dtype)), world_size()), dist.get_rank() * len(x)
    index = nearest(x, rows.to(x.dtype), skip=first, backend=backend)
    return -log_distance(rows, index, first=first, p=p, eps=eps, backend=backend).mean()


def koleo_reference(x: Tensor, p: float = 2.0, eps: float = 1e-8) -> Tensor:
    """The same as :func:`koleo_loss` in plain PyTorch, with the whole matrix of products."""
    _check(x, p, eps)
    z = F.normalize(x, dim=1)
    with torch.no_grad():
        products = (z @ z.T).fill_diagonal_(-2)
    return -(F.pairwise_distance(z, z[products.argmax(1)], p, eps) + eps).log().mean()


def _check(x: Tensor, p: float, eps: float) -> None:
    check_rows("x", x)
    check_not_empty("x", x)
    for name, value in (("p", p), ("eps", eps)):
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value}")


class KoLeoLoss(nn.Module):
    """:func:`koleo_loss` as a module: ``KoLeoLoss()(x)``.

    Args:
        p, eps, gather_distributed, backend: as in :func:`koleo_loss`.
    """

    def __init__(
        self, p: float = 2.0, eps: float = 1e-8, *, gather_distributed: bool = False, backend: str | None = None
    ) -> None:
        super().__init__()
        check_gathering(gather_distributed)
        self.gather_distributed = gather_distributed
        self.p, self.eps = p, eps
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return koleo_loss(x, self.p, self.eps, gather_distributed=self.gather_distributed, backend=self.backend)

    def extra_repr(self) -> str:
        return f"p={self.p}, eps={self.eps}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"x": torch.randn(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """Before the loss has done its work: all rows of one direction, more or less."""
    return {"x": torch.randn(1, d, **tensor) + 0.5 * torch.randn(n, d, **tensor)}


SPEC = LossSpec(
    name="koleo",
    fused=koleo_loss,
    reference=koleo_reference,
    module=KoLeoLoss,
    inputs=_inputs,
    trained=_trained,
    features=("x",),
    narrowest=2,  # on a line all rows coincide or are opposite
    cross_entropy=False,
)
