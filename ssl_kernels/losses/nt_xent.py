r"""NT-Xent, the loss of SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709, eq. 1).

With ``M = V N`` rows (``V`` views of ``N`` samples, one view below the other), ``z`` on the unit sphere and
:math:`s_{ij} = z_i \cdot z_j / \tau`:

.. math:: \mathcal L = \frac1{M (V-1)} \sum_i \sum_{p \in P(i)}
          -\log \frac{e^{s_{ip}}}{\sum_{j \ne i} e^{s_{ij}}}, \qquad P(i) = \{\,j \ne i : j \equiv i \bmod N\,\}.

For two views this is the paper's equation 1. For more it is the same equation averaged over all ordered pairs of views
of a sample, the denominator running over every other row, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.gather import check_gathering, lse_over_ranks
from ssl_kernels.losses.info_nce import info_nce_loss
from ssl_kernels.losses.memory_bank import MemoryBank
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.temperature import as_scale, check_temperature
from ssl_kernels.ops import check_views, mean_log_share, self_lse, softplus_mean

__all__ = ["NTXentLoss", "nt_xent_loss", "nt_xent_reference"]


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    more: Sequence[Tensor] = (),
    gather_distributed: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy between two views (SimCLR), O(N D) memory.

    .. math:: \mathcal L = -\frac1{2N} \sum_i
              \log\frac{\exp(z_i\cdot z_{p(i)}/\tau)}{\sum_{j\ne i}\exp(z_i\cdot z_j/\tau)}

    Args:
        z1, z2: projections of the two views, ``[N, D]``, float32/64, bfloat16 or float16; normalised here, as in the
            paper. All of one dtype and device.
        temperature: tau, a float or a one-element tensor (then it gets a gradient); ``|tau| >= 1e-8``, a negative one
            is legal. A tensor on a GPU is not read back to be checked: a zero there gives NaN.
        more: further views ``[N, D]`` of the same samples; the loss is then the mean over all ordered pairs of views.
        gather_distributed: have the rows of all processes as negatives, with their gradients; every process must hold
            as many. The mean is over the rows of this one: averaged over processes, as data-parallel training does,
            loss and gradient are those of the whole batch.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the rows (and their positives), a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes differ, not 2-d, N < 1, dtypes or devices differ, ``|temperature| < 1e-8`` or NaN, unknown
            or unavailable backend; the message names what came and what was expected.
        TypeError: not floating-point tensors.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709, eq. 1. Reference: :func:`nt_xent_reference`. Differentiable
    once; a second derivative raises (the reference has all of them).
    """
    views = [z1, z2, *more]
    check_views(views)
    scale, multiplier = as_scale(temperature, z1)
    if gather_distributed:
        neg, pos, _ = lse_over_ranks(views, scale, multiplier, backend=backend)
    elif more:
        neg, pos, _ = self_lse(views, scale, multiplier, period=z1.shape[0], backend=backend)
    else:
        return softplus_mean(views, scale, multiplier, period=z1.shape[0], backend=backend)
    if len(pos) == 1:
        return mean_log_share(neg, pos)
    return (torch.logsumexp(torch.cat([neg[None], pos]), 0) - pos).mean()


def nt_xent_reference(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5, *, more: Sequence[Tensor] = ()
) -> Tensor:
    """The same as :func:`nt_xent_loss`, written as the paper has it, with the whole matrix and plain autograd."""
    views = [z1, z2, *more]
    check_views(views)
    check_temperature(temperature)
    z = F.normalize(torch.cat(views), dim=1)
    rows, n = len(z), len(z1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))
    i = torch.arange(rows, device=z.device)
    terms = [F.cross_entropy(logits, (i + o * n) % rows) for o in range(1, len(views))]
    return torch.stack(terms).mean()


class NTXentLoss(nn.Module):
    """:func:`nt_xent_loss` as a module: ``NTXentLoss(temperature=0.5)(z1, z2)``, with more views if there are more.

    With a memory bank, as lightly has it, ``z1`` are queries and ``z2`` keys: the loss is
    :func:`ssl_kernels.info_nce_loss` with the keys of earlier batches as negatives, and the new ones take their place.

    Args:
        temperature: tau, a float, or a one-element tensor or ``nn.Parameter`` to learn it.
        memory_bank_size: ``(n, dim)``, or ``n`` alone, and the width is that of the first keys; 0 for no bank.
        gather_distributed: as in :func:`nt_xent_loss`; with a bank, the keys of all processes go there.
        backend: as in :func:`nt_xent_loss`.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_gathering(gather_distributed)
        self.temperature = temperature
        bank = MemoryBank(memory_bank_size, gather_distributed, backend=backend)
        self.memory_bank = bank if len(bank) else None
        self.gather_distributed = gather_distributed
        self.backend = backend

    def forward(self, z1: Tensor, z2: Tensor, *more: Tensor) -> Tensor:
        if not self.memory_bank:  # none, or one of no rows
            return self._among_views(z1, z2, *more)
        check_views([z1, z2])
        if more:
            raise ValueError(f"more: expected two views beside a memory bank, got {2 + len(more)}")
        loss = info_nce_loss(z1, z2, self.memory_bank.read(z1), self.temperature, backend=self.backend)
        if z1.requires_grad:  # in evaluation the bank stays as it is
            self.memory_bank.enqueue(z2)
        return loss

    def _among_views(self, z1: Tensor, z2: Tensor, *more: Tensor) -> Tensor:
        return nt_xent_loss(
            z1, z2, self.temperature, more=more, gather_distributed=self.gather_distributed, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"z1": torch.randn(n, d, **tensor), "z2": torch.randn(n, d, **tensor), "temperature": 0.1}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    z = torch.randn(n, d, **tensor)
    return {"z1": z, "z2": z + 0.1 * torch.randn(n, d, **tensor), "temperature": 0.02}


SPEC = LossSpec(
    name="nt_xent",
    fused=nt_xent_loss,
    reference=nt_xent_reference,
    module=NTXentLoss,
    inputs=_inputs,
    trained=_trained,
    features=("z1", "z2"),
    parameters=("temperature",),
)
