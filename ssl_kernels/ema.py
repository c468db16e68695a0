r"""Momentum encoders: an exponential moving average of a model, in one launch however many tensors it has.

.. math:: \theta_k \leftarrow m\,\theta_k + (1 - m)\,\theta_q

(He et al. 2019, MoCo, https://arxiv.org/abs/1911.05722, eq. 2). The average is updated where it lies: no storage is
ever replaced, so that optimisers, views and CUDA graphs that know it keep knowing it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kernels.ops import average_

__all__ = ["EMAModel", "cosine_momentum", "ema_update_", "rounding_state"]

BUFFERS = ("average", "copy", "keep")


def ema_update_(
    target: nn.Module | Iterable[Tensor],
    source: nn.Module | Iterable[Tensor],
    momentum: float | Tensor,
    *,
    buffers: str = "average",
    rounding: Tensor | None = None,
    move_source: bool = False,
    backend: str | None = None,
) -> None:
    r"""``target = momentum * target + (1 - momentum) * source`` in place, for whole models or lists of tensors.

    Args:
        target: the average: a model, or tensors, float32 or float64 (bfloat16 and float16 only with ``rounding``).
        source: the model that it follows, or as many tensors; matched by position, alike in shape and device. Their
            floating-point dtype may be another (a bfloat16 model, its average in float32).
        momentum: a number from 0 (become the source) to 1 (stay), or a one-element tensor. One on the GPU is read by
            the kernel alone, so that a CUDA graph can be replayed with other values in it; its range is not checked.
        buffers: of models: ``"average"`` those of floating point and copy the rest, ``"copy"`` all, or ``"keep"`` the
            target's. Lists are averaged where they are of floating point and copied elsewhere.
        rounding: what :func:`rounding_state` made, for averages of 16 bits: they are rounded up or down at random, with
            the right chances.
        move_source: copy sources that lie on another device to the target's first; otherwise they are refused.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Raises:
        ValueError: a momentum outside [0, 1], different numbers of tensors, shapes or devices that disagree, targets
            that share memory with each other or with the source, an average of 16 bits without ``rounding``.
        TypeError: a model against a list, dtypes that cannot be averaged or copied.
    """
    averaged, copied = _pairs(target, source, buffers)
    to, of = [t for t, _ in averaged + copied], [s for _, s in averaged + copied]
    if move_source:
        with torch.no_grad():
            of = [s.to(t.device) for t, s in zip(to, of, strict=True)]
    average_(to, of, momentum, copied=len(copied), rounding=rounding, backend=backend)


Pairs = list[tuple[Tensor, Tensor]]


def _pairs(target: Any, source: Any, buffers: str) -> tuple[Pairs, Pairs]:
    """What is averaged, and what is copied."""
    if buffers not in BUFFERS:
        raise ValueError(f"buffers: expected one of {', '.join(BUFFERS)}, got {buffers!r}")
    if not isinstance(target, nn.Module):
        if isinstance(source, nn.Module):
            raise TypeError("source: expected tensors as target, got a module")
        return _by_dtype(_zip("tensors", target, source))
    if not isinstance(source, nn.Module):
        raise TypeError(f"source: expected a module as target, got {type(source).__name__}")
    averaged, copied = _by_dtype(_zip("parameters", target.parameters(), source.parameters()))
    if buffers == "keep":
        return averaged, copied
    pairs = _zip("buffers", target.buffers(), source.buffers())
    if buffers == "copy":
        return averaged, copied + pairs
    more = _by_dtype(pairs)
    return averaged + more[0], copied + more[1]


def _zip(what: str, target: Iterable[Tensor], source: Iterable[Tensor]) -> Pairs:
    to, of = list(target), list(source)
    if len(to) != len(of):
        raise ValueError(f"source: expected {len(to)} {what} as target, got {len(of)}")
    return list(zip(to, of, strict=True))


def _by_dtype(pairs: Pairs) -> tuple[Pairs, Pairs]:
    return [p for p in pairs if p[0].is_floating_point()], [p for p in pairs if not p[0].is_floating_point()]


def rounding_state(seed: int = 0, device: torch.device | str | None = None) -> Tensor:
    """The state of stochastic rounding, int64 ``[2]``: a seed, and how many updates it has served.

    Every update takes random bits of its own and advances the count on the device. Equal states give equal averages, on
    every process and after a checkpoint.
    """
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def cosine_momentum(step: int, total: int, base: float = 0.996, final: float = 1.0) -> float:
    r"""BYOL's schedule, from ``base`` at step 0 to ``final`` at step ``total`` and after it.

    .. math:: m = m_1 - (m_1 - m_0) \frac{1 + \cos(\pi\, k / K)}{2}

    Raises:
        ValueError: momenta outside [0, 1], a negative step, no steps.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733, section 3.2.
    """
    for name, value in (("base", base), ("final", final)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    if total < 1:
        raise ValueError(f"total: expected at least one step, got {total}")
    if step < 0:
        raise ValueError(f"step: expected 0 or more, got {step}")
    return final - (final - base) * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2


class EMAModel(nn.Module):
    """A model's exponential moving average: ``ema = EMAModel(model)``, then ``ema.update(model)`` after every step.

    Calling it calls the averaged copy, ``ema.module``, whose parameters get no gradient. All of its state is in
    ``state_dict()``.

    Args:
        model: what is copied.
        momentum: a number from 0 to 1, or a one-element tensor; :meth:`update` may be given another.
        buffers: as in :func:`ema_update_`.
        dtype: of the average; None: the model's, but float32 for 16 bits unless ``rounding_seed`` is given.
        device: where the average lies; None: with the model. Elsewhere, every update copies the model there.
        rounding_seed: keep an average of 16 bits, rounded stochastically; see :func:`rounding_state`.
        backend: as in :func:`ema_update_`.
    """

    rounding: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        momentum: float | Tensor = 0.999,
        *,
        buffers: str = "average",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rounding_seed: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if buffers not in BUFFERS:
            raise ValueError(f"buffers: expected one of {', '.join(BUFFERS)}, got {buffers!r}")
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum
        self.buffers_mode = buffers
        self.backend = backend
        if dtype is None and rounding_seed is None:
            self.module._apply(lambda t: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t)
        self.module.to(device=device, dtype=dtype)
        where = next((t.device for t in self.module.parameters()), device)
        state = None if rounding_seed is None else rounding_state(rounding_seed, where)
        self.register_buffer("rounding", state)

    def update(self, model: nn.Module, momentum: float | Tensor | None = None) -> None:
        """One step towards ``model``, with ``momentum`` in place of the average's own if given."""
        ema_update_(
            self.module,
            model,
            self.momentum if momentum is None else momentum,
            buffers=self.buffers_mode,
            rounding=self.rounding,
            move_source=True,
            backend=self.backend,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffers_mode!r}"
