r"""Alignment and uniformity on the sphere (Wang & Isola 2020, https://arxiv.org/abs/2005.10242): what contrastive
losses trade off, one by one.

.. math:: \mathcal L_{\text{align}} = \frac1N \sum_i \lVert x_i - y_i \rVert^\alpha, \qquad
          \mathcal L_{\text{uniform}} = \log \frac{2}{N(N - 1)} \sum_{i < j} e^{-t \lVert x_i - x_j \rVert^2}

On the sphere :math:`\lVert x_i - x_j \rVert^2 = 2 - 2\, x_i \cdot x_j`: uniformity is a log-sum-exp of cosines.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.sphere import unit_rows
from ssl_kernels.ops import check_rows, check_views, self_lse

__all__ = ["AlignmentLoss", "UniformityLoss", "alignment_loss", "uniformity_loss", "uniformity_reference"]


def uniformity_loss(x: Tensor, t: float = 2.0, *, backend: str | None = None) -> Tensor:
    r"""Logarithm of the mean Gaussian potential of all pairs of rows on the sphere, O(N D) memory.

    Args:
        x: ``[N, D]``, ``N >= 2``, float32/64, bfloat16 or float16; normalised here (the authors' code takes rows that
            are). A row of zeros counts as orthogonal to all others.
        t: the potential is ``exp(-t |x_i - x_j|^2)``.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        A float32 scalar (float64 for float64), between ``-4 t`` and 0 for a positive ``t``.

    Raises:
        ValueError: not 2-d, fewer than two rows, a ``t`` that is no number, unknown or unavailable backend.
        TypeError: not a floating-point tensor.

    Wang & Isola 2020, https://arxiv.org/abs/2005.10242. Reference: :func:`uniformity_reference`. Differentiable
    once; a second derivative raises (the reference has all of them).
    """
    _check(x, t)
    n = len(x)
    neg, _, top = self_lse([x], multiplier=2.0 * t, period=n, backend=backend)
    pairs = torch.full((), n * (n - 1), dtype=torch.float64, device=x.device)  # a tensor, so that any n is one graph
    return (torch.logsumexp(neg + (top - 2 * t), 0) - pairs.log()).to(neg.dtype)


def uniformity_reference(x: Tensor, t: float = 2.0) -> Tensor:
    """The same as :func:`uniformity_loss` in plain PyTorch, with the distances of all pairs, from their cosines."""
    _check(x, t)
    z = F.normalize(x, dim=1)
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return (2 - 2 * z @ z.T)[i, j].mul(-t).exp().mean().log()


def _check(x: Tensor, t: float) -> None:
    check_rows("x", x)
    if x.shape[0] < 2 or x.shape[1] == 0:
        raise ValueError(f"x: expected at least two rows and one column, got shape {tuple(x.shape)}")
    if not abs(t) < math.inf:
        raise ValueError(f"t: expected a number, got {t}")


def alignment_loss(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Mean distance of paired rows on the sphere, to the power ``alpha``. Plain PyTorch: a pass over its inputs.

    Args:
        x, y: two views, ``[N, D]``, float32/64, bfloat16 or float16, of one dtype and device; normalised here.
        alpha: the power, above 0.

    Returns:
        A float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices differ, not 2-d, N < 1, ``alpha`` not above 0.
        TypeError: not floating-point tensors.

    Wang & Isola 2020, https://arxiv.org/abs/2005.10242.
    """
    check_views([x, y], names=("x", "y"))
    if not alpha > 0:
        raise ValueError(f"alpha: expected a number above 0, got {alpha}")
    # differences before squares: 2 - 2 cos has no digits left for views that agree
    difference = unit_rows([x]) - unit_rows([y])
    if alpha == 2:
        return difference.square().sum(1).mean()
    return torch.linalg.vector_norm(difference, dim=1).pow(alpha).mean()


class UniformityLoss(nn.Module):
    """:func:`uniformity_loss` as a module: ``UniformityLoss(t=2.0)(x)``."""

    def __init__(self, t: float = 2.0, *, backend: str | None = None) -> None:
        super().__init__()
        self.t = t
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return uniformity_loss(x, self.t, backend=self.backend)

    def extra_repr(self) -> str:
        return f"t={self.t}"


class AlignmentLoss(nn.Module):
    """:func:`alignment_loss` as a module: ``AlignmentLoss(alpha=2.0)(x, y)``."""

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return alignment_loss(x, y, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"x": torch.randn(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """Before the loss has done its work: all rows of one direction, more or less."""
    return {"x": torch.randn(1, d, **tensor) + 0.5 * torch.randn(n, d, **tensor)}


SPEC = LossSpec(
    name="uniformity",
    fused=uniformity_loss,
    reference=uniformity_reference,
    module=UniformityLoss,
    inputs=_inputs,
    trained=_trained,
    features=("x",),
    smallest=2,
    largest=4e6,
    cross_entropy=False,
)
