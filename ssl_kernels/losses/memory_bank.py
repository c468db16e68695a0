"""The keys of earlier batches as negatives, as lightly's losses keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.gather import gather_rows, world_size
from ssl_kernels.ops import enqueue_


class MemoryBank(nn.Module):
    """Keys of earlier batches, the newest in place of the oldest; what does not fit before the end is dropped.

    Dropping is lightly's way, and keeps the batches whole; :class:`ssl_kernels.MemoryQueue` goes round.

    Args:
        size: ``(n, dim)``, or ``n`` alone, and the width is that of the first keys; 0 for no bank at all.
        gather_distributed: enqueue the keys of all processes.
        normalize: put keys on the unit sphere before they are written.
        backend: what enqueues; default: the fastest available for the device.

    Attributes:
        bank: ``[n, dim]`` in float32, random directions at first; None until the width is known.
        bank_ptr: the row that is written next. Both are part of ``state_dict()``; one without them leaves them as they
            are.

    Raises:
        ValueError: a negative size, or more than two numbers.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        *,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        sizes = (size,) if isinstance(size, int) else tuple(size)
        if any(s < 0 for s in sizes):
            raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
        if len(sizes) not in (1, 2):
            raise ValueError(f"Illegal memory bank size {size}, expected n or (n, dim).")
        self.size = sizes
        self.gather_distributed = gather_distributed
        self.normalize = normalize
        self.backend = backend
        self.register_buffer("bank", None)
        self.register_buffer("bank_ptr", None)
        if len(sizes) == 2 and sizes[0] > 0:
            self._fill(sizes[1], None)

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def __len__(self) -> int:
        return self.size[0]

    def read(self, keys: Tensor) -> Tensor:
        """The bank ``[n, dim]``, on the device and in the dtype of ``keys``; it moves to their device for good."""
        if self.bank is None:
            self._fill(keys.shape[1], keys.device)
        elif self.bank.device != keys.device:
            self.bank, self.bank_ptr = self.bank.to(keys.device), self.bank_ptr.to(keys.device)
        return self.bank.to(keys.dtype)

    def enqueue(self, keys: Tensor) -> None:
        """Writes ``keys`` ``[B, dim]`` over the oldest rows."""
        if self.gather_distributed and world_size() > 1:
            keys = gather_rows(keys.detach(), world_size())
        enqueue_(self.bank, self.bank_ptr, keys, normalize=self.normalize, wrap=False, backend=self.backend)

    def _fill(self, dim: int, device: torch.device | None) -> None:
        self.bank = F.normalize(torch.randn(self.size[0], dim, device=device), dim=1)
        self.bank_ptr = torch.zeros(1, dtype=torch.int64, device=device)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + "bank")
        if saved is None:
            return
        if self.bank is None:
            self._fill(saved.shape[1], saved.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
