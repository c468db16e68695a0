r"""Exponential moving averages in place, of any number of tensors in one launch: the momentum encoder's part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import FLOATS
from ssl_kernels.ops.library import define, plain

HALVES = (torch.bfloat16, torch.float16)


def average_(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    momentum: float | Tensor,
    *,
    copied: int = 0,
    rounding: Tensor | None = None,
    backend: str | None = None,
) -> None:
    r"""``target = momentum * target + (1 - momentum) * source``, pair by pair, in place.

    Computed in float32 (float64 where the target is), from the nearer of the two, so that what is lost is a rounding of
    the step: ``momentum=1`` leaves a target as it is, ``momentum=0`` makes it the source. On a GPU one launch serves
    all pairs; the table of their addresses is built at the first call with them, so call once before capturing a CUDA
    graph. Tensors that are not dense, or whose layout is not their source's, go through a dense copy each.

    Args:
        target: what is updated; float32 or float64, or bfloat16 or float16 with ``rounding``.
        source: as many tensors of the same shapes on the same device, of any floating-point dtype.
        momentum: a float, or a one-element tensor: one on the GPU is read by the kernel, not by the host, and its range
            is not checked.
        copied: so many pairs at the end are copied instead: buffers, of any dtype; integers must be of one dtype.
        rounding: state of the stochastic rounding of 16-bit targets, int64 ``[2]`` on their device: a seed, and the
            number of the next call, which advances. An element's random bits depend on both and on its place alone.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Raises:
        ValueError: a momentum outside [0, 1]; numbers of tensors, shapes, or devices that disagree; a 16-bit target
            without ``rounding``; targets that share memory with each other or with a source.
        TypeError: dtypes that cannot be averaged.
    """
    number, tensor = 0.0, None
    if isinstance(momentum, Tensor):
        if momentum.numel() != 1 or not momentum.is_floating_point():
            raise ValueError(
                f"momentum: expected a number or one floating-point element, got {momentum.dtype} of shape "
                f"{tuple(momentum.shape)}"
            )
        if momentum.device.type == "cpu" and not torch.compiler.is_compiling():
            number = momentum.item()
        else:
            tensor = momentum
    else:
        number = float(momentum)
    if tensor is None and not 0 <= number <= 1:
        raise ValueError(f"momentum: expected a number from 0 to 1, got {number}")
    target, source = list(target), list(source)
    if not target and not source:
        return
    arguments = target, source, tensor, number, copied, rounding, backend or backends.override()
    with torch.no_grad():
        if plain(target) and plain(source):
            _implementation(*arguments)
        else:
            torch.ops.ssl_kernels.average_(*arguments)


# ---------------------------------------------------------------------------------------------------------- checks
def _check(target, source, copied, rounding) -> None:
    """Quick where all is well, as it is called with hundreds of tensors; what is wrong is looked for afterwards."""
    if len(target) != len(source):
        raise ValueError(f"source: expected {len(target)} tensors as target, got {len(source)}")
    if not 0 <= copied <= len(target):
        raise ValueError(f"copied: expected 0 to {len(target)} pairs, got {copied}")
    averaged = len(target) - copied
    dtypes = {t.dtype for t in target[:averaged]}
    if not (
        [t.shape for t in target] == [s.shape for s in source]
        and len({t.device for t in target} | {s.device for s in source}) == 1
        and dtypes | {s.dtype for s in source[:averaged]} <= set(FLOATS)
        and [t.dtype for t in target[averaged:]] == [s.dtype for s in source[averaged:]]
        and (rounding is not None or not dtypes & set(HALVES))
    ):
        for k, (t, s) in enumerate(zip(target, source, strict=True)):
            _check_pair(k, t, s, target[0], k >= averaged, rounding)
    if rounding is not None and not (
        rounding.dtype == torch.int64 and rounding.shape == (2,) and rounding.device == target[0].device
    ):
        raise ValueError(
            f"rounding: expected int64 of shape (2,) on {target[0].device}, got {rounding.dtype} of shape "
            f"{tuple(rounding.shape)} on {rounding.device}"
        )


def _check_pair(k, t, s, first, copied, rounding) -> None:
    if t.shape != s.shape:
        raise ValueError(f"source[{k}]: expected shape {tuple(t.shape)} as target[{k}], got {tuple(s.shape)}")
    for name, one in ((f"target[{k}]", t), (f"source[{k}]", s)):
        if one.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} as target[0], got {one.device}")
        if one.dtype not in FLOATS and not copied:
            raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {one.dtype}")
    if copied and t.dtype != s.dtype and not {t.dtype, s.dtype} <= set(FLOATS):
        raise TypeError(f"source[{k}]: expected dtype {t.dtype} as target[{k}], got {s.dtype}")
    if t.dtype in HALVES and not copied and rounding is None:
        bits = 8 if t.dtype == torch.bfloat16 else 11
        raise ValueError(
            f"target[{k}]: an average in {t.dtype} stands still, as it rounds away every step below 2^-{bits} of a "
            "value: keep it in float32, or ask for stochastic rounding"
        )


def _check_memory(target, source) -> None:
    """What is written must be nobody else's. Only dense tensors can be compared by their bounds."""
    for k, t in enumerate(target):
        if not t.is_contiguous() and torch._debug_has_internal_overlap(t) == 1:
            raise ValueError(f"target[{k}]: its elements share memory (expanded?): expected a tensor of its own")
    bounds = (tuple((t.data_ptr(), t.nbytes if _is_dense(t) else 0) for t in tensors) for tensors in (target, source))
    if overlap := _overlap(*bounds):
        raise ValueError(f"{overlap[0]}: shares memory with {overlap[1]}: the average needs memory of its own")


@lru_cache(maxsize=64)  # the same tensors come at every step, and looking took a third of the call
def _overlap(target: tuple[tuple[int, int], ...], source: tuple[tuple[int, int], ...]) -> tuple[str, str] | None:
    """Two tensors of which at least one is written, and that share a byte."""
    spans = [(at, at + n, True, f"target[{k}]") for k, (at, n) in enumerate(target) if n]
    spans += [(at, at + n, False, f"source[{k}]") for k, (at, n) in enumerate(source) if n]
    furthest = {True: (0, ""), False: (0, "")}
    for start, end, written, name in sorted(spans):
        for other, (last, who) in furthest.items():
            if start < last and (written or other):
                return name, who
        furthest[written] = max(furthest[written], (end, name))
    return None


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (
        t.is_contiguous(memory_format=torch.channels_last)
        if t.dim() == 4
        else t.dim() == 5 and t.is_contiguous(memory_format=torch.channels_last_3d)
    )


# -------------------------------------------------------------------------------------------------- implementation
def _fake(target, source, momentum, number, copied, rounding, backend):
    _check(target, source, copied, rounding)


def _implementation(target, source, momentum, number, copied, rounding, backend):
    _check(target, source, copied, rounding)
    _check_memory(target, source)
    to, of = list(target), list(source)
    for k, (t, s) in enumerate(zip(target, source, strict=True)):
        if not (t.is_contiguous() and s.is_contiguous()) and not (_is_dense(t) and t.stride() == s.stride()):
            to[k], of[k] = t.contiguous(), s.contiguous()
    backends.operation(backend, target[0].device, "average_")(to, of, momentum, number, copied, rounding)
    for t, dense in zip(target, to, strict=True):
        if dense is not t:
            t.copy_(dense)
    torch.autograd.graph.increment_version(target if rounding is None else [*target, rounding])


define(
    "average_(Tensor(a!)[] target, Tensor[] source, Tensor? momentum, float number, SymInt copied,"
    " Tensor(b!)? rounding, str backend) -> ()",
    _implementation,
    _fake,
)
