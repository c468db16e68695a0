r"""The symmetric cross-entropy of two sets of rows: CLIP's whole loss in one call, where that is small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.across import cross_lse
from ssl_kernels.ops.checks import accumulate_dtype, check_matrix, check_number
from ssl_kernels.ops.library import below_autograd, define, once, plain
from ssl_kernels.ops.within import mean_log_share, times

# Entries of a matrix that is small whatever its rows; a larger one may have as many as the rows have elements.
SMALL = 512 * 512


def cross_softplus_mean(
    x: Tensor,
    y: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    offset: int,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """``F.softplus(neg - pos).mean()`` over the rows of :func:`cross_lse` and over their positives' columns, half each.

    On a CPU the loss comes with its gradients where all rows want one and the matrix is no larger than they are (256
    rows of width 512, say): its exponentials are kept between the sweeps, which saves one of four products, rows are
    packed once and Python is crossed once. Not in float16, whose gradients must be formed after a gradient scaler has
    scaled the loss, lest they vanish. Arguments and errors as :func:`cross_lse`.
    """
    arguments = scale, multiplier, offset, normalize, backend or backends.override()
    if _at_once(x, y):
        if plain([x, *y]):
            return _AtOnce.apply(True, *arguments, x, *y)
        return torch.ops.ssl_kernels.cross_softplus_mean(x, list(y), *arguments)[0]
    rows, columns = cross_lse(
        x, y, scale, multiplier, offset=offset, normalize=normalize, columns=True, backend=backend
    )
    own = columns.neg[offset : offset + x.shape[0]]
    return (mean_log_share(rows.neg, rows.pos) + mean_log_share(own, columns.pos)) / 2


def _at_once(x: Tensor, y: Sequence[Tensor]) -> bool:
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if not all(t.requires_grad and t.dtype != torch.float16 and t.dim() == 2 for t in (x, *y)):
        return False
    columns = sum(t.shape[0] for t in y)
    entries = x.shape[0] * columns
    return entries <= SMALL or entries <= (x.shape[0] + columns) * x.shape[-1]


def _check(x, y, scale, offset) -> None:
    check_matrix(x, y, offset)
    check_number("scale", scale, "x", x)


def _fake(x, y, scale, multiplier, offset, normalize, backend):
    _check(x, y, scale, offset)
    loss = x.new_empty((), dtype=accumulate_dtype(x.dtype))
    dscale = torch.empty_like(scale) if scale is not None else torch.empty_like(loss)
    return loss, dscale, x.new_empty(x.shape), [t.new_empty(t.shape) for t in y]


def _implementation(x, y, scale, multiplier, offset, normalize, backend):
    _check(x, y, scale, offset)
    serve = backends.resolve(backend, x.device, "cross_lse")
    if hasattr(serve, "cross_softplus_mean"):
        return serve.cross_softplus_mean(x, y, scale, multiplier, offset, normalize)
    call = x, y, scale, multiplier, offset, normalize
    neg, pos, top, neg_y, pos_y, top_y = serve.cross_lse(*call, True)
    own = neg_y[offset : offset + x.shape[0]]
    share, share_y = (torch.sigmoid(n - p) / (2 * x.shape[0]) for n, p in ((neg, pos), (own, pos_y)))
    dneg_y = torch.zeros_like(neg_y)
    dneg_y[offset : offset + x.shape[0]] = share_y
    kept = neg, top, neg_y, top_y
    dx, dy, dscale = serve.cross_lse_backward(share, -share, dneg_y, -share_y, *call, *kept, True, True)
    return (mean_log_share(neg, pos) + mean_log_share(own, pos_y)) / 2, dscale, dx, dy


class _AtOnce(torch.autograd.Function):
    """The loss, whose gradients come with it."""

    @staticmethod
    def forward(ctx, alone, scale, multiplier, offset, normalize, backend, x, *y):
        arguments = scale, multiplier, offset, normalize, backend
        if alone:
            loss, dscale, dx, dy = _implementation(x, y, *arguments)
        else:
            with below_autograd():
                loss, dscale, dx, dy = torch.ops.ssl_kernels.cross_softplus_mean(x, list(y), *arguments)
        ctx.mark_non_differentiable(dscale, dx, *dy)
        # the inputs only so that second derivatives reach them and raise
        ctx.save_for_backward(dscale, dx, *dy, scale, x, *y)
        return loss if alone else (loss, dscale, dx, *dy)

    @staticmethod
    def backward(ctx, g, *_):
        dscale, dx, *dy = once(times, g, *ctx.saved_tensors)
        return None, dscale if ctx.needs_input_grad[1] else None, None, None, None, None, dx, *dy


def _autograd(x, y, *arguments):
    loss, dscale, dx, *dy = _AtOnce.apply(False, *arguments, x, *y)
    return loss, dscale, dx, dy


define(
    "cross_softplus_mean(Tensor x, Tensor[] y, Tensor? scale, float multiplier, SymInt offset, bool normalize,"
    " str backend) -> (Tensor loss, Tensor dscale, Tensor dx, Tensor[] dy)",
    _implementation,
    _fake,
    autograd=_autograd,
    widen=2,
)
