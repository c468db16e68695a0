r"""Cosines of the rows of one matrix with the rows of another, pair by pair: the part of BYOL and SimSiam."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_alike, check_rows
from ssl_kernels.ops.library import below_autograd, define, once, plain


def cosine(x: Tensor, y: Tensor, eps: float = 1e-8, *, backend: str | None = None) -> Tensor:
    r"""Cosine of row ``i`` of ``x`` with row ``i`` of ``y``: norms, product and division in one reading of both.

    .. math:: c_i = \frac{x_i}{\max(|x_i|, \varepsilon)} \cdot \frac{y_i}{\max(|y_i|, \varepsilon)}

    as in :func:`torch.nn.functional.cosine_similarity`. Backward reads ``x`` and ``y`` once more and writes the
    gradients that are asked for; what is kept for it is three numbers a row.

    Args:
        x, y: ``[N, D]`` of one shape, dtype and device, float32/64, bfloat16 or float16.
        eps: the least a norm counts as; positive.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``[N]``, float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, an eps that is not positive, unknown backend.
        TypeError: not floating-point tensors.
    """
    backend = backend or backends.override()
    if plain((x, y)):
        return _Cosine.apply(x, y, eps, backend)[0]
    return torch.ops.ssl_kernels.cosine(x, y, eps, backend)[0]


def _check(x, y, eps) -> None:
    check_rows("x", x)
    check_rows("y", y)
    if x.shape != y.shape:
        raise ValueError(f"y: expected shape {tuple(x.shape)} as x, got {tuple(y.shape)}")
    check_alike("y", y, "x", x)
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")


def _fake(x, y, eps, backend):
    _check(x, y, eps)
    value = x.new_empty(x.shape[0], dtype=accumulate_dtype(x.dtype))
    return value, torch.empty_like(value), torch.empty_like(value)


def _backward_fake(dvalue, x, y, value, x_norm, y_norm, eps, want_x, want_y, backend):
    return x.new_empty(x.shape if want_x else (0,)), y.new_empty(y.shape if want_y else (0,))


def _implementation(x, y, eps, backend):
    _check(x, y, eps)
    return backends.operation(backend, x.device, "cosine")(x, y, eps)


def _backward_implementation(dvalue, x, y, value, x_norm, y_norm, eps, want_x, want_y, backend):
    kept = value, x_norm, y_norm
    return backends.operation(backend, x.device, "cosine_backward")(dvalue, x, y, *kept, eps, want_x, want_y)


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, eps, backend):
        if plain((x, y)):
            results = _implementation(x, y, eps, backend)
        else:
            with below_autograd():
                results = torch.ops.ssl_kernels.cosine(x, y, eps, backend)
        ctx.mark_non_differentiable(*results[1:])
        ctx.save_for_backward(x, y, *results)
        ctx.rest = eps, backend
        return results

    @staticmethod
    def backward(ctx, dvalue, *_):
        eps, backend = ctx.rest
        want = ctx.needs_input_grad[:2]
        grads = once(_backward_op, (eps, *want, backend), dvalue, *ctx.saved_tensors)
        return *(d if wanted else None for d, wanted in zip(grads, want, strict=True)), None, None


def _backward_op(rest, dvalue, x, y, value, x_norm, y_norm):
    run = _backward_implementation if plain((x, y)) else torch.ops.ssl_kernels.cosine_backward
    return run(dvalue, x, y, value, x_norm, y_norm, *rest)


def _autograd(x, y, eps, backend):
    return _Cosine.apply(x, y, eps, backend)


define(
    "cosine(Tensor x, Tensor y, float eps, str backend) -> (Tensor value, Tensor x_norm, Tensor y_norm)",
    _implementation,
    _fake,
    autograd=_autograd,
    widen=2,
)
define(
    "cosine_backward(Tensor dvalue, Tensor x, Tensor y, Tensor value, Tensor x_norm, Tensor y_norm, float eps,"
    " bool want_x, bool want_y, str backend) -> (Tensor dx, Tensor dy)",
    _backward_implementation,
    _backward_fake,
)
