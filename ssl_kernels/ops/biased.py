r"""Log-sum-exp of a matrix along either dimension, with a bias along it: a step of Sinkhorn-Knopp."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_not_empty, check_rows
from ssl_kernels.ops.library import define
from ssl_kernels.ops.prototypes import check_bias


def biased_lse(
    logits: Tensor, bias: Tensor | None, multiplier: float, *, dim: int, backend: str | None = None
) -> Tensor:
    r"""``(multiplier * logits + bias).logsumexp(dim)`` in one reading of the logits, none of it stored.

    Args:
        logits: ``[N, K]``, float32/64, bfloat16 or float16.
        bias: ``[K]`` for ``dim=1``, ``[N]`` for ``dim=0``, or None for zeros; float32, or float64 for float64.
        multiplier: multiplies the logits.
        dim: 1 to sum over the columns, 0 over the rows.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``[N]`` for ``dim=1``, ``[K]`` for ``dim=0``, float32 (float64 for float64), without a gradient.

    Raises:
        ValueError: a bias of another shape or dtype, another dim, unknown backend.
        TypeError: not a floating-point tensor.
    """
    with torch.no_grad():
        return torch.ops.ssl_kernels.biased_lse(logits, bias, multiplier, dim, backend or backends.override())


def _check(logits, bias, dim) -> None:
    check_rows("logits", logits)
    check_not_empty("logits", logits)
    check_bias(bias, dim, tuple(logits.shape), logits)


def _fake(logits, bias, multiplier, dim, backend):
    _check(logits, bias, dim)
    return logits.new_empty(logits.shape[1 - dim], dtype=accumulate_dtype(logits.dtype))


def _implementation(logits, bias, multiplier, dim, backend):
    _check(logits, bias, dim)
    return backends.operation(backend, logits.device, "biased_lse")(logits, bias, multiplier, dim)


define(
    "biased_lse(Tensor logits, Tensor? bias, float multiplier, int dim, str backend) -> Tensor",
    _implementation,
    _fake,
    widen=1,
)
