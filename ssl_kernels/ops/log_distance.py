r"""How far rows on the sphere are from rows that were found for them: the other half of KoLeo's part of the waist."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_not_empty, check_rows
from ssl_kernels.ops.library import below_autograd, define, once, plain


def log_distance(
    x: Tensor, index: Tensor, *, first: int = 0, p: float = 2.0, eps: float = 1e-8, backend: str | None = None
) -> Tensor:
    r"""Logarithm of the distance of row ``first + i`` of ``x`` to row ``index[i]``, both on the unit sphere.

    .. math:: l_i = \log\bigl(\lVert z_{k(i)} - z_{\text{index}_i} + \varepsilon \rVert_p + \varepsilon\bigr),
              \qquad k(i) = \text{first} + i, \quad z_k = \frac{x_k}{\max(\lVert x_k \rVert, 10^{-12})}

    Two rows that nearly coincide have a difference beyond the digits of float32, whose inverse is the gradient, and
    where each is the other's neighbour most of the two gradients cancels: all of this is in float64, whatever comes in.
    What is kept for backward is two numbers a row.

    Args:
        x: ``[K, D]``, float32/64, bfloat16 or float16.
        index: int64 ``[N]``, each of 0 to K - 1; not checked on a GPU.
        first: the row that ``index[0]`` is for.
        p: the norm of the differences, above 0.
        eps: added to every difference and to the distance, above 0.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``[N]``, float32 (float64 for float64). No gradient flows to ``index``, of course.

    Raises:
        ValueError: shapes or devices disagree, ``p`` or ``eps`` not above 0, rows that ``x`` does not have, unknown
            backend.
        TypeError: not a floating-point tensor, an index that is not int64.
    """
    backend = backend or backends.override()
    if plain((x, index)):
        return _LogDistance.apply(x, index, first, p, eps, backend)[0]
    return torch.ops.ssl_kernels.log_distance(x, index, first, p, eps, backend)[0]


def _check(x, index, first, p, eps) -> None:
    check_rows("x", x)
    check_not_empty("x", x)
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected int64, got {index.dtype}")
    if index.dim() != 1 or index.device != x.device:
        raise ValueError(f"index: expected [N] on {x.device}, got shape {tuple(index.shape)} on {index.device}")
    if not 0 <= first <= x.shape[0] - index.shape[0]:
        raise ValueError(
            f"first: expected 0 to {x.shape[0] - index.shape[0]} for {index.shape[0]} of {x.shape[0]} rows, got {first}"
        )
    for name, value in (("p", p), ("eps", eps)):
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value}")


def _fake(x, index, first, p, eps, backend):
    _check(x, index, first, p, eps)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    norm, distance = (x.new_empty(t.shape[0], dtype=wide) for t in (x, index))
    return x.new_empty(index.shape[0], dtype=accumulate_dtype(x.dtype)), norm, distance


def _backward_fake(dvalue, x, index, norm, distance, first, p, eps, backend):
    return x.new_empty(x.shape)


def _implementation(x, index, first, p, eps, backend):
    _check(x, index, first, p, eps)
    if index.device.type == "cpu" and len(index):  # on a GPU to look at it would be to wait for it
        lowest, highest = (t.item() for t in index.aminmax())
        if not 0 <= lowest <= highest < len(x):
            raise ValueError(f"index: expected 0 to {len(x) - 1}, got {lowest if lowest < 0 else highest}")
    return backends.operation(backend, x.device, "log_distance")(x, index, first, p, eps)


def _backward_implementation(dvalue, x, index, norm, distance, first, p, eps, backend):
    operation = backends.operation(backend, x.device, "log_distance_backward")
    return operation(dvalue, x, index, norm, distance, first, p, eps)


class _LogDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, first, p, eps, backend):
        if plain((x, index)):
            results = _implementation(x, index, first, p, eps, backend)
        else:
            with below_autograd():
                results = torch.ops.ssl_kernels.log_distance(x, index, first, p, eps, backend)
        ctx.mark_non_differentiable(*results[1:])
        ctx.save_for_backward(x, index, *results[1:])
        ctx.rest = first, p, eps, backend
        return results

    @staticmethod
    def backward(ctx, dvalue, *_):
        (dx,) = once(_backward_op, ctx.rest, dvalue, *ctx.saved_tensors)
        return dx, None, None, None, None, None


def _backward_op(rest, dvalue, x, index, norm, distance):
    run = _backward_implementation if plain((x, index)) else torch.ops.ssl_kernels.log_distance_backward
    return (run(dvalue, x, index, norm, distance, *rest),)


def _autograd(x, index, first, p, eps, backend):
    return _LogDistance.apply(x, index, first, p, eps, backend)


define(
    "log_distance(Tensor x, Tensor index, SymInt first, float p, float eps, str backend)"
    " -> (Tensor value, Tensor norm, Tensor distance)",
    _implementation,
    _fake,
    autograd=_autograd,
)
define(
    "log_distance_backward(Tensor dvalue, Tensor x, Tensor index, Tensor norm, Tensor distance, SymInt first, float p,"
    " float eps, str backend) -> Tensor dx",
    _backward_implementation,
    _backward_fake,
)
