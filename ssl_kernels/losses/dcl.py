r"""Decoupled contrastive learning (Yeh et al. 2021, https://arxiv.org/abs/2110.06848, equations 5 and 6).

NT-Xent without the positive in the denominator. With the two views' rows one below the other, ``z`` on the unit sphere,
:math:`s_{ij} = z_i \cdot z_j / \tau` and the twin :math:`p(i)` of row ``i``:

.. math:: \mathcal L = \frac1{2N} \sum_i \Big[ -w_i s_{i p(i)} + \log \sum_{j \notin \{i, p(i)\}} e^{s_{ij}} \Big].

DCL has :math:`w = 1`; DCLW weighs down the pairs that agree already: with :math:`c_i` the cosine of a pair,
:math:`w_i = 2 - N e^{c_i / \sigma} / \sum_k e^{c_k / \sigma}`, a constant to autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.gather import check_gathering, lse_over_ranks
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.sphere import unit_rows
from ssl_kernels.losses.temperature import as_scale, check_temperature
from ssl_kernels.ops import check_views, self_lse

__all__ = ["DCLLoss", "DCLWLoss", "dcl_loss", "dcl_reference", "mises_fisher_weights"]

Weights = Callable[[Tensor, Tensor], Tensor]


def dcl_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    weight_fn: Weights | None = None,
    gather_distributed: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Decoupled contrastive loss between two views (DCL; DCLW with weights), O(N D) memory.

    Args:
        z1, z2: projections of the two views, ``[N, D]``, float32/64, bfloat16 or float16; normalised here. All of one
            dtype and device.
        temperature: tau, a float or a one-element tensor (then it gets a gradient); ``|tau| >= 1e-8``.
        weight_fn: makes the weights ``[N]`` of the positives from the normalised views; called as
            ``weight_fn(z1, z2)`` and ``weight_fn(z2, z1)``. :func:`mises_fisher_weights` for DCLW.
        gather_distributed: have the rows of all processes as negatives, with their gradients.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the 2N rows, a float32 scalar (float64 for float64). One sample has no negatives: -inf.

    Raises:
        ValueError: shapes differ, not 2-d, N < 1, dtypes or devices differ, ``|temperature| < 1e-8`` or NaN, weights
            of another shape, unknown or unavailable backend; the message names what came and what was expected.
        TypeError: not floating-point tensors.

    Yeh et al. 2021, https://arxiv.org/abs/2110.06848. Reference: :func:`dcl_reference`.
    """
    check_views([z1, z2])
    scale, multiplier = as_scale(temperature, z1)
    if gather_distributed:
        neg, pos, top = lse_over_ranks([z1, z2], scale, multiplier, backend=backend)
    else:
        neg, pos, top = self_lse([z1, z2], scale, multiplier, period=len(z1), backend=backend)
    loss = neg - pos[0]
    if weight_fn is not None:
        loss = loss + (1 - _weights(weight_fn, z1, z2)) * (pos[0] + top)
    return loss.mean().to(neg.dtype)


def mises_fisher_weights(z1: Tensor, z2: Tensor, sigma: float = 0.5) -> Tensor:
    """DCLW's weights ``[N]``: two less the pair's share of ``exp(cos / sigma)`` in the batch, times N."""
    cosines = (z1.detach() * z2.detach()).sum(1)
    return 2 - len(z1) * (cosines / sigma).softmax(0)


def _weights(weight_fn: Weights, z1: Tensor, z2: Tensor) -> Tensor:
    u1, u2 = unit_rows([z1]), unit_rows([z2])
    both = weight_fn(u1, u2), weight_fn(u2, u1)
    for w in both:
        if w.shape != (len(z1),):
            raise ValueError(f"weight_fn: expected weights of shape ({len(z1)},), got {tuple(w.shape)}")
    return torch.cat(both)


def dcl_reference(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, *, weight_fn: Weights | None = None
) -> Tensor:
    """The same as :func:`dcl_loss`, written as the paper has it, with the whole matrix and plain autograd."""
    check_views([z1, z2])
    check_temperature(temperature)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n, logits = len(z1), z @ z.T / temperature
    i = torch.arange(2 * n, device=z.device)
    twins = (i + n) % (2 * n)
    negatives = (i[:, None] != i) & (twins[:, None] != i)
    weights = 1.0 if weight_fn is None else _weights(weight_fn, z1, z2)
    return (logits.masked_fill(~negatives, float("-inf")).logsumexp(1) - weights * logits[i, twins]).mean()


class DCLLoss(nn.Module):
    """:func:`dcl_loss` as a module, with lightly's constructor: ``DCLLoss(temperature=0.1)(z1, z2)``.

    Args:
        temperature: tau, a float, or a one-element tensor or ``nn.Parameter`` to learn it.
        weight_fn, gather_distributed, backend: as in :func:`dcl_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Weights | None = None,
        gather_distributed: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_gathering(gather_distributed)
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        self.backend = backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return dcl_loss(
            z1,
            z2,
            self.temperature,
            weight_fn=self.weight_fn,
            gather_distributed=self.gather_distributed,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLWLoss(DCLLoss):
    """DCL with the weights of von Mises and Fisher: ``DCLWLoss(temperature=0.1, sigma=0.5)(z1, z2)``."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        weight_fn = partial(mises_fisher_weights, sigma=sigma)
        super().__init__(temperature, weight_fn, gather_distributed, backend=backend)


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"z1": torch.randn(n, d, **tensor), "z2": torch.randn(n, d, **tensor), "temperature": 0.1}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    z = torch.randn(n, d, **tensor)
    return {"z1": z, "z2": z + 0.1 * torch.randn(n, d, **tensor), "temperature": 0.02}


def _spec(
    name: str, module: Callable[..., nn.Module], weight_fn: Weights | None, variants: tuple[LossSpec, ...] = ()
) -> LossSpec:
    return LossSpec(
        name=name,
        fused=partial(dcl_loss, weight_fn=weight_fn),
        reference=partial(dcl_reference, weight_fn=weight_fn),
        module=module,
        inputs=_inputs,
        trained=_trained,
        features=("z1", "z2"),
        parameters=("temperature",),
        smallest=2,
        cross_entropy=False,
        variants=variants,
    )


SPEC = _spec("dcl", DCLLoss, None, (_spec("dclw", DCLWLoss, mises_fisher_weights),))
