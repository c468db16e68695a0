"""What the kernels share that go once through memory and multiply no matrices."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def streamed_rows(width: int) -> dict[str, int | bool]:
    """About 2,048 entries of each of two operands a program; wider rows are read piece by piece."""
    block = min(2048, max(16, 1 << (width - 1).bit_length()))
    return {"ROWS": min(32, 2048 // block), "BLOCK_D": block, "num_warps": 4, "enable_fp_fusion": True}


def rows_of(x: Tensor) -> Tensor:
    """``[N, D]`` whose columns are contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
