r"""A queue of embeddings that a contrastive loss takes its negatives from (MoCo, He et al. 2019,
https://arxiv.org/abs/1911.05722)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.ops import FLOATS, enqueue_

__all__ = ["MemoryQueue"]


class MemoryQueue(nn.Module):
    """The last ``size`` keys, on the device, the newest in place of the oldest.

    Read first, then enqueue: ``info_nce_loss(q, k, queue.rows)`` has the keys of earlier steps as negatives,
    ``queue.enqueue(k)`` adds this step's. The loss keeps nothing of the queue for its backward pass, so the order of
    ``enqueue`` and ``backward`` does not matter, and no copy is made. Plain PyTorch that does keep it raises, as for
    any tensor changed in place.

    Normalisation, writing and the advance of the pointer are one launch, for batches of any size; nothing is read back
    to the host, and a CUDA graph can hold it.

    Args:
        size: how many rows.
        dim: how wide.
        dtype: of the rows; bfloat16 and float16 halve memory and traffic (float32 by default).
        persistent: be part of ``state_dict()``, so that a resumed run goes on with its negatives.
        normalize: put keys on the unit sphere before they are written.
        device: where the rows lie.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Attributes:
        rows: ``[size, dim]``; random directions at first, as in MoCo. Row ``pointer`` is the oldest.
        pointer: the row that is written next, an int64 scalar on the device.

    Raises:
        ValueError: no rows or columns.
        TypeError: a dtype that is not floating point.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        persistent: bool = True,
        *,
        normalize: bool = True,
        device: torch.device | str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if dtype not in FLOATS:
            raise TypeError(f"dtype: expected float32, float64, bfloat16 or float16, got {dtype}")
        self.normalize = normalize
        self.backend = backend
        rows = F.normalize(torch.randn(size, dim, device=device), dim=1).to(dtype)
        self.register_buffer("rows", rows, persistent=persistent)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device), persistent=persistent)

    def enqueue(self, keys: Tensor) -> None:
        """Writes keys ``[B, dim]`` over the oldest rows; of more than ``size`` the last ones stay.

        Raises:
            ValueError: keys of another width or on another device.
            TypeError: not a floating-point tensor.
        """
        state: dict[str, Any] = self._buffers  # past Module.__getattr__: a tenth of the call at 256 keys
        enqueue_(state["rows"], state["pointer"], keys, normalize=self.normalize, backend=self.backend)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}"
