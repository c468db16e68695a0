"""lightly's losses and what its users build beside them: ``from ssl_kernels.compat.lightly import NTXentLoss``.

Constructors, calls, attributes and messages as there. Unlike there, a memory bank is part of ``state_dict()`` (a
checkpoint without one loads), takes features of any dtype, and follows them to their device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ssl_kernels import losses
from ssl_kernels.compat.memory_bank import MemoryBankModule, NNMemoryBankModule
from ssl_kernels.compat.momentum import update_momentum
from ssl_kernels.losses import (
    Center,
    DINOLoss,
    IBOTPatchLoss,
    KoLeoLoss,
    NegativeCosineSimilarity,
    dino_loss,
    mises_fisher_weights,
    sinkhorn_center,
)

__all__ = [
    "Center",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "DirectCLRLoss",
    "IBOTPatchLoss",
    "KoLeoLoss",
    "MemoryBankModule",
    "NNMemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SwaVLoss",
    "negative_mises_fisher_weights",
    "sinkhorn",
    "update_momentum",
]

negative_mises_fisher_weights = mises_fisher_weights


class NTXentLoss(losses.NTXentLoss):
    """lightly's ``NTXentLoss(temperature=0.5, memory_bank_size=0, gather_distributed=False)(out0, out1)``."""

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        self.eps = 1e-8
        if abs(temperature) < self.eps:
            raise ValueError(f"Illegal temperature: abs({temperature}) < 1e-8")
        super().__init__(temperature, memory_bank_size, gather_distributed)
        if self.memory_bank is None:
            self.memory_bank = MemoryBankModule(0)
        self.cross_entropy = nn.CrossEntropyLoss(reduction="mean")  # for losses built on this one; nothing here uses it
        if isinstance(memory_bank_size, int) and memory_bank_size > 0:
            warnings.warn(
                f"Memory bank size 'size={memory_bank_size}' does not specify feature dimension. It is recommended to "
                "set the feature dimension with 'size=(n, dim)' when creating the memory bank. Distributed training "
                "might fail if the feature dimension is not set.",
                UserWarning,
                stacklevel=2,
            )

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(out0, out1)


class DirectCLRLoss(NTXentLoss):
    """lightly's: NT-Xent of the first ``loss_dim`` features (Jing et al. 2021, https://arxiv.org/abs/2110.09348)."""

    def __init__(
        self,
        loss_dim: int = 64,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(temperature, memory_bank_size, gather_distributed)
        self.loss_dim = loss_dim

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(out0[:, : self.loss_dim], out1[:, : self.loss_dim])


class DCLLoss(losses.DCLLoss):
    """lightly's ``DCLLoss(temperature=0.1, weight_fn=None, gather_distributed=False)(out0, out1)``."""

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(temperature, weight_fn, gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        return super().forward(out0, out1)


class DCLWLoss(losses.DCLWLoss):
    """lightly's ``DCLWLoss(temperature=0.1, sigma=0.5, gather_distributed=False)(out0, out1)``."""

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        super().__init__(temperature, sigma, gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        return super().forward(out0, out1)


@torch.no_grad()
def sinkhorn(out: Tensor, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False) -> Tensor:
    """lightly's: the assignments ``[N, K]`` of the rows of logits ``out`` to prototypes of equal sums."""
    center = sinkhorn_center(out, epsilon, iterations, gather_distributed=gather_distributed)
    return ((out - center) / epsilon).softmax(1).to(out.dtype)


class SwaVLoss(nn.Module):
    """lightly's ``SwaVLoss(...)(high_resolution_outputs, low_resolution_outputs, queue_outputs=None)``.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882: DINO's loss, with Sinkhorn-Knopp's assignments of the student's
    own crops in high resolution for a teacher.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        centers = []
        for k, rows in enumerate(high_resolution_outputs):
            rows = rows.detach()
            if queue_outputs is not None:
                rows = torch.cat([rows, queue_outputs[k].detach()])
            gather = self.sinkhorn_gather_distributed
            center = sinkhorn_center(rows, self.sinkhorn_epsilon, self.sinkhorn_iterations, gather_distributed=gather)
            centers.append(center)
        crops = [*high_resolution_outputs, *low_resolution_outputs]
        temps = self.temperature, self.sinkhorn_epsilon
        return dino_loss(crops, list(high_resolution_outputs), *temps, torch.cat(centers))
