"""Exponential moving averages, a tensor at a time, and rounding by chance."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def average_(target, source, momentum, number, copied, rounding):
    if momentum is None:
        momentum = torch.tensor(number, device=target[0].device, dtype=torch.float64)
    m = momentum.double().reshape(())
    averaged = len(target) - copied
    first = 0
    for k, (t, s) in enumerate(zip(target, source, strict=True)):
        if k >= averaged:
            t.copy_(s)
            continue
        wide = torch.float64 if t.dtype == torch.float64 else torch.float32
        old, new, keep, take = t.to(wide), s.to(wide), m.to(wide), (1 - m).to(wide)
        value = torch.where(take < 0.5, old + take * (new - old), new + keep * (old - new))
        if t.dtype != wide:
            value = torch.where(m == 1, t, _rounded_at_random(value, t.dtype, rounding, first))
        t.copy_(torch.where(m == 1, t, torch.where(m == 0, s.to(t.dtype), value.to(t.dtype))))
        first += t.numel()
    if rounding is not None:
        rounding[1] += 1


def _rounded_at_random(value: Tensor, dtype: torch.dtype, rounding: Tensor, first: int) -> Tensor:
    """``value`` or, with the chance that is the part cut off, its neighbour away from zero; what is finite stays so."""
    random = _random_bits(rounding, first, value)
    size = value.abs()
    if dtype == torch.bfloat16:
        bits = size.view(torch.int32)
        up = bits + (random >> 16).to(torch.int32)
        cut = torch.where(up & 0x7F800000 == 0x7F800000, bits, up) & ~0xFFFF
        result = cut.view(torch.float32)
    else:
        # the unit in the last place: a power of two, and 2^-24 for the smallest numbers
        unit = ((size.view(torch.int32) & 0x7F800000).view(torch.float32) * 2.0**-10).clamp_min(2.0**-24)
        result = (size.double() / unit + (random >> 19) / 8192).floor() * unit
        result = torch.where((result > 65504) & (size < 65520), 65504.0, result)
    return torch.where(value.isnan(), value, result.copysign(value)).to(dtype)


def _random_bits(rounding: Tensor, first: int, like: Tensor) -> Tensor:
    """32 bits for every element, as int64; a function of the seed, the number of the call and the element's number."""
    seed, step = rounding[0], rounding[1]
    low = _mixed(seed & _WORD ^ _mixed(step & _WORD))
    high = _mixed((seed >> 32 & _WORD) + _mixed((step >> 32 & _WORD) + low & _WORD) & _WORD)
    at = first + torch.arange(like.numel(), device=like.device).reshape(like.shape)
    return _mixed(_mixed(at + low & _WORD) ^ (at >> 32) + high & _WORD)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ x >> 16) * 0x21F0AAAD & _WORD
    x = (x ^ x >> 15) * 0xD35A2D97 & _WORD
    return x ^ x >> 15
