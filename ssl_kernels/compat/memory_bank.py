"""lightly's ``MemoryBankModule`` and ``NNMemoryBankModule``, over a queue that stays on the device.

As there, the rows of a batch that do not fit before the end of the bank are dropped, and what a call returns is the
bank before its update. Unlike there, the bank is part of ``state_dict()``, and a checkpoint without one loads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_kernels.losses.memory_bank import MemoryBank
from ssl_kernels.ops import nearest


class MemoryBankModule(MemoryBank):
    """Rows of earlier batches: ``output, bank = module(output, update=True)``.

    Args:
        size: ``(n, dim)``, or ``n`` alone, and the width is that of the first output; 0 for no bank.
        gather_distributed: enqueue the outputs of all processes.
        feature_dim_first: return the bank as ``[dim, n]`` instead of ``[n, dim]``.
        backend: what enqueues; default: the fastest available for the device.

    Raises:
        ValueError: a negative size, or more than two numbers.
    """

    def __init__(
        self,
        size: int | Sequence[int] = 65536,
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__(size, gather_distributed, normalize=False, backend=backend)
        self.feature_dim_first = feature_dim_first
        if isinstance(size, int) and size > 0:
            warnings.warn(
                f"Memory bank size 'size={size}' does not specify feature dimension. It is recommended to set the "
                "feature dimension with 'size=(n, dim)' when creating the memory bank. Distributed training might fail "
                "if the feature dimension is not set.",
                UserWarning,
                stacklevel=2,
            )

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``output`` and a copy of the bank, None if there is none; then, if asked, the update. Labels are ignored."""
        if len(self) == 0:
            return output, None
        self.read(output)  # the bank comes into being, or to the output's device
        bank = self.bank.clone()
        if update:
            self.enqueue(output)
        return output, bank.T if self.feature_dim_first else bank


class NNMemoryBankModule(MemoryBankModule):
    """NNCLR's: every row of the output becomes its nearest neighbour in the bank, by cosine.

    Args:
        size: as in :class:`MemoryBankModule`, not 0.
        backend: as there.
    """

    def __init__(self, size: int | Sequence[int] = 2**16, *, backend: str | None = None) -> None:
        super().__init__(size, feature_dim_first=False, backend=backend)
        if len(self) == 0:
            raise ValueError(f"size: expected at least one row, got {size}")

    @torch.no_grad()
    def forward(self, output: Tensor, update: bool = False) -> Tensor:  # type: ignore[override]
        """The bank's rows ``[N, dim]``, as they are in it; then, if asked, the update."""
        found = self.read(output)[nearest(output, self.read(output), backend=self.backend)]
        if update:
            self.enqueue(output)
        return found
