r"""The negative cosine of paired rows, which SimSiam (Chen & He 2020, https://arxiv.org/abs/2011.10566) minimises.

.. math:: \mathcal L = -\frac1N \sum_i \frac{x_i}{\max(|x_i|, \varepsilon)} \cdot \frac{y_i}{\max(|y_i|, \varepsilon)}

Gradients flow to both sides: which of them stands still is the method's to say, with ``detach()``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import FLOATS, check_alike, check_not_empty, cosine

__all__ = ["NegativeCosineSimilarity", "negative_cosine_reference", "negative_cosine_similarity"]


def negative_cosine_similarity(
    x0: Tensor, x1: Tensor, dim: int = 1, eps: float = 1e-8, *, backend: str | None = None
) -> Tensor:
    r"""Mean of the negative cosines of ``x0`` and ``x1``: norms, products and gradients each in one reading of both.

    Args:
        x0, x1: ``[N, D]``, or any shapes that broadcast, float32/64, bfloat16 or float16, of one dtype and device.
        dim: the dimension along which the vectors lie.
        eps: the least a norm counts as; positive.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over all other dimensions, a float32 scalar (float64 for float64). A vector shorter than ``eps`` has
        the gradient of a division by ``eps``; a row of zeros therefore has a large one, finite in every dtype.

    Raises:
        ValueError: shapes that do not broadcast, no rows, a dimension that is not there, dtypes or devices that differ,
            an eps that is not positive, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Chen & He 2021 (SimSiam), https://arxiv.org/abs/2011.10566, eq. 1. Reference: :func:`negative_cosine_reference`.
    """
    a, b = _as_rows(x0, x1, dim)
    return -cosine(a, b, eps, backend=backend).mean()


def _as_rows(x0: Tensor, x1: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    for name, x in (("x0", x0), ("x1", x1)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    check_alike("x1", x1, "x0", x0)
    if x0.shape != x1.shape:
        try:
            x0, x1 = torch.broadcast_tensors(x0, x1)
        except RuntimeError:
            raise ValueError(
                f"x1: expected a shape that broadcasts with {tuple(x0.shape)} as x0, got {tuple(x1.shape)}"
            ) from None
    if not -x0.dim() <= dim < x0.dim():
        raise ValueError(f"dim: expected {-x0.dim()} to {x0.dim() - 1} for shape {tuple(x0.shape)}, got {dim}")
    if x0.dim() != 2 or dim not in (1, -1):
        x0, x1 = (x.movedim(dim, -1).flatten(0, -2) if x.dim() > 1 else x[None] for x in (x0, x1))
    check_not_empty("x0", x0)
    return x0, x1


def negative_cosine_reference(x0: Tensor, x1: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The same as :func:`negative_cosine_similarity` in plain PyTorch."""
    _as_rows(x0, x1, dim)
    return -(F.normalize(x0, dim=dim, eps=eps) * F.normalize(x1, dim=dim, eps=eps)).sum(dim).mean()


class NegativeCosineSimilarity(nn.Module):
    """:func:`negative_cosine_similarity` as a module: ``NegativeCosineSimilarity(dim=1, eps=1e-8)(p, z.detach())``.

    Args:
        dim, eps, backend: as in :func:`negative_cosine_similarity`.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8, *, backend: str | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.backend = backend

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return negative_cosine_similarity(x0, x1, self.dim, self.eps, backend=self.backend)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"x0": torch.randn(n, d, **tensor), "x1": torch.randn(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    x = torch.randn(n, d, **tensor)
    return {"x0": x, "x1": x + 0.5 * torch.randn(n, d, **tensor)}


SPEC = LossSpec(
    name="negative_cosine",
    fused=negative_cosine_similarity,
    reference=negative_cosine_reference,
    module=NegativeCosineSimilarity,
    inputs=_inputs,
    trained=_trained,
    features=("x0", "x1"),
    cross_entropy=False,
)
