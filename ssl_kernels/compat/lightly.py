"""lightly's losses and what its users build beside them: ``from ssl_kernels.compat.lightly import NTXentLoss``.

Constructors, calls, attributes and messages as there. Unlike there, a memory bank is part of ``state_dict()`` (a
checkpoint without one loads), takes features of any dtype, and follows them to their device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ssl_kernels import losses
from ssl_kernels.compat.memory_bank import MemoryBankModule, NNMemoryBankModule
from ssl_kernels.compat.momentum import update_momentum
from ssl_kernels.losses import KoLeoLoss, NegativeCosineSimilarity, mises_fisher_weights

__all__ = [
    "DCLLoss",
    "DCLWLoss",
    "DirectCLRLoss",
    "KoLeoLoss",
    "MemoryBankModule",
    "NNMemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "negative_mises_fisher_weights",
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
