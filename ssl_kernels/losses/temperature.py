"""The temperature: a number or a learned tensor, checked and turned into the scale that multiplies the logits."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-8


def check_temperature(temperature: float | Tensor) -> None:
    """Raises ValueError for NaN and for ``|temperature| < 1e-8``; never reads a GPU tensor back."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature: expected a number or one element, got shape {tuple(temperature.shape)}")
        if torch.compiler.is_compiling() or temperature.device.type != "cpu":
            return
        temperature = temperature.item()
    if not abs(temperature) >= SMALLEST:
        raise ValueError(f"Illegal temperature: abs({temperature}) < {SMALLEST}")


def as_scale(temperature: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """``(scale, multiplier)`` with ``scale * multiplier = 1 / temperature``; the tensor half carries the gradient."""
    check_temperature(temperature)
    if not isinstance(temperature, Tensor):
        return None, 1.0 / temperature
    # In float32 at least: the reciprocal of a bfloat16 temperature would lose five digits of every logit
    dtype = torch.float64 if torch.float64 in (like.dtype, temperature.dtype) else torch.float32
    return temperature.to(like.device, dtype).reciprocal(), 1.0
