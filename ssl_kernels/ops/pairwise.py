r"""The sum of a softplus over every pair of rows and columns: SigLIP's part. Nothing is normalised over a row or a
column, so value and gradients come out of one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_matrix, check_number
from ssl_kernels.ops.library import below_autograd, define, once, plain


def pair_softplus(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    offset: int | None = 0,
    backend: str | None = None,
) -> Tensor:
    r"""Sum of ``softplus(s)`` over all pairs, of ``softplus(-s)`` where the pair is a positive.

    With :math:`s_{ij} = \text{multiplier} \cdot \text{scale} \cdot x_i \cdot y_j + \text{bias}`, the positives being
    the entries ``(i, i + offset)``. The rows are taken as they are, not normalised. Where a gradient is wanted it is
    formed with the value, in float32 (float64 for float64), and kept: ``[M, D]`` and ``[K, D]``.

    Args:
        x, y: ``[M, D]`` and ``[K, D]`` of one dtype and device, float32/64, bfloat16 or float16.
        scale, bias: one-element tensors, or None for 1 and 0; they get gradients.
        multiplier: a plain number that multiplies the products too, not the bias.
        offset: the column of row 0's positive, ``0 <= offset <= K - M``; None: all pairs are negatives.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The sum, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, an offset that does not fit, unknown backend.
        TypeError: not floating-point tensors.
    """
    inputs = x, y, scale, bias
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    arguments = *inputs, multiplier, offset, gradient, backend or backends.override()
    if plain([x, y]):
        return _PairSoftplus.apply(*arguments)[0]
    return torch.ops.ssl_kernels.pair_softplus(*arguments)[0]


def _check(x, y, scale, bias, offset) -> None:
    check_matrix(x, [y], offset)
    check_number("scale", scale, "x", x)
    check_number("bias", bias, "x", x)


def _fake(x, y, scale, bias, multiplier, offset, gradient, backend):
    _check(x, y, scale, bias, offset)
    total = x.new_empty((), dtype=accumulate_dtype(x.dtype))
    dx, dy = (total.new_empty(t.shape if gradient else (0,)) for t in (x, y))
    return total, dx, dy, torch.empty_like(total), torch.empty_like(total)


def _implementation(x, y, scale, bias, multiplier, offset, gradient, backend):
    _check(x, y, scale, bias, offset)
    return backends.operation(backend, x.device, "pair_softplus")(x, y, scale, bias, multiplier, offset, gradient)


class _PairSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, scale, bias, *rest):
        if plain([x, y]):
            results = _implementation(x, y, scale, bias, *rest)
        else:
            with below_autograd():
                results = torch.ops.ssl_kernels.pair_softplus(x, y, scale, bias, *rest)
        ctx.mark_non_differentiable(*results[1:])
        # the inputs only so that second derivatives reach them and raise, and that their changes are noticed
        ctx.save_for_backward(*results[1:], x, y, scale, bias)
        return results

    @staticmethod
    def backward(ctx, g, *_):
        grads = once(_times, g, *ctx.saved_tensors)
        asked = (d if wanted else None for d, wanted in zip(grads, ctx.needs_input_grad[:4], strict=True))
        return *asked, None, None, None, None


def _times(g, dx, dy, dscale, dbias, x, y, scale, bias):
    grads = [(g * dx).to(x.dtype), (g * dy).to(y.dtype)]
    for d, t in ((dscale, scale), (dbias, bias)):
        grads.append(g * d if t is None else (g * d).to(t.dtype).reshape(t.shape))
    return tuple(grads)


def _autograd(*arguments):
    return _PairSoftplus.apply(*arguments)


define(
    "pair_softplus(Tensor x, Tensor y, Tensor? scale, Tensor? bias, float multiplier, SymInt? offset, bool gradient,"
    " str backend) -> (Tensor total, Tensor dx, Tensor dy, Tensor dscale, Tensor dbias)",
    _implementation,
    _fake,
    autograd=_autograd,
    widen=2,
)
