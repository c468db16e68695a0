"""The temperature, or its inverse: a number or a learned tensor, checked and turned into what multiplies the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.ops import accumulate_dtype

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
    return _at_least_float32(temperature, like).reciprocal(), 1.0


def as_logit_scale(logit_scale: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """``(scale, multiplier)`` whose product is ``logit_scale``, which multiplies the logits as it is."""
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1:
            raise ValueError(f"logit_scale: expected a number or one element, got shape {tuple(logit_scale.shape)}")
        return _at_least_float32(logit_scale, like), 1.0
    if not abs(logit_scale) >= 0:
        raise ValueError(f"logit_scale: expected a number, got {logit_scale}")
    return None, logit_scale * 1.0


def as_factor(scale: Tensor | None, multiplier: float, like: Tensor) -> Tensor:
    """``scale * multiplier`` as a float64 scalar, for what is computed beside the waist."""
    factor = torch.full((), multiplier, dtype=torch.float64, device=like.device)
    return factor if scale is None else factor * scale.double().reshape(())


def as_logit_bias(logit_bias: float | Tensor, like: Tensor) -> Tensor:
    """``logit_bias`` as one element on ``like``'s device."""
    if not isinstance(logit_bias, Tensor):
        return torch.full((), logit_bias, dtype=accumulate_dtype(like.dtype), device=like.device)
    if logit_bias.numel() != 1:
        raise ValueError(f"logit_bias: expected a number or one element, got shape {tuple(logit_bias.shape)}")
    return _at_least_float32(logit_bias, like)


def _at_least_float32(number: Tensor, like: Tensor) -> Tensor:
    return number.to(like.device, torch.promote_types(accumulate_dtype(number.dtype), accumulate_dtype(like.dtype)))
