"""Where a launch goes, and how tensors have to lie for it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def architecture(device: torch.device) -> int:
    """80, 90, 100 ...; interpreted or emulated, as on a Hopper."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def rows_of(x: Tensor) -> Tensor:
    """``[N, D]`` whose columns are contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
