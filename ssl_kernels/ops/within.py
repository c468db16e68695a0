r"""Row reductions of a set of embeddings against itself: NT-Xent's half of the waist.

Which entries take part is a *rule*, never an array: with ``M`` rows and a ``period`` dividing ``M``, rows ``i`` and
``j`` belong to the same sample when ``(j - i) % period == 0``. The diagonal is left out, the twins (same sample,
``j != i``) are handed back as positives, everything else is a negative. Two views of ``N`` samples have ``period = N``;
``period = M`` means no twins at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_number, check_parts
from ssl_kernels.ops.library import below_autograd, define, once, plain

# Up to so many rows on a CPU, the gradients of softplus_mean are formed with it.
AT_ONCE = 512


def self_lse(
    x: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    period: int,
    normalize: bool = True,
    coarse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Row log-sum-exp over the negatives of a set of embeddings against itself, and the logits of the positives.

    With ``z`` the rows of all ``x`` one below the other, on the unit sphere if ``normalize``, and
    :math:`s_{ij} = \text{multiplier} \cdot \text{scale} \cdot z_i \cdot z_j`:

    .. math:: \mathrm{neg}_i = \log \sum_{j:\,(j-i) \bmod period \ne 0} e^{s_{ij}} - \mathrm{top}_i, \qquad
              \mathrm{pos}_{o-1,i} = s_{i,\,(i + o \cdot period) \bmod M} - \mathrm{top}_i,
              \quad o = 1 \dots M/period - 1.

    ``top`` is the larger of the two sides, rounded to the dtype of the results, and a constant to autograd: a softmax
    does not see what is taken from all of its logits, and what is left has all its digits, at any temperature. The
    positives are kept out of the sums, so that ``softplus(neg - pos)``, NT-Xent, has them in a trained model too.

    Args:
        x: one or more tensors ``[N_k, D]`` of one dtype and device, float32/64, bfloat16 or float16; ``M = sum(N_k)``.
        scale: 0-d or one-element tensor that multiplies the logits, or None for 1; it gets a gradient.
        multiplier: a plain number that multiplies the logits too.
        period: distance between rows of the same sample; divides ``M``.
        normalize: divide each row by ``max(norm, 1e-12)`` first (as ``torch.nn.functional.normalize`` does).
        coarse: rows of float32 were computed from rows of 16 bits, and their products need no more digits than those':
            ``torch.set_float32_matmul_precision("high")`` for this call. The gradients are float32 as ever.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``neg`` ``[M]``, ``pos`` ``[M / period - 1, M]`` and ``top`` ``[M]`` (no gradient; ``neg + top`` is the plain
        log-sum-exp), float32 (float64 for float64). Without any negatives (``period = 1``) ``neg`` is ``-inf``.
        O(M D) memory, forward and backward.

    Raises:
        ValueError: shapes, dtypes or devices disagree, ``period`` does not divide ``M``, unknown backend.
        TypeError: not floating-point tensors.
    """
    if not x:  # said here, because the dispatcher finds no kernel for no tensors
        raise ValueError("x: expected at least one tensor, got none")
    arguments = scale, multiplier, period, normalize, backend or backends.override(), coarse
    if plain(x):
        return _SelfLse.apply(*arguments, *x)
    return torch.ops.ssl_kernels.self_lse(list(x), *arguments)


def softplus_mean(
    x: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    period: int,
    backend: str | None = None,
) -> Tensor:
    """``F.softplus(neg - pos).mean()`` over :func:`self_lse` of the rows on the sphere: the loss of one pair of views.

    For small batches on a CPU a step is mostly Python, and the loss comes with its gradients: one call instead of two,
    rows packed once, 60 us less of 180 at 64 rows. Not in float16, whose gradients must be formed after a gradient
    scaler has scaled the loss, lest they vanish. Arguments as :func:`self_lse`.
    """
    arguments = scale, multiplier, period, backend or backends.override()
    small = len(x) > 0 and x[0].device.type == "cpu" and sum(t.shape[0] for t in x) <= AT_ONCE
    small = small and all(t.dtype != torch.float16 for t in x) and torch.is_grad_enabled()
    if small and (any(t.requires_grad for t in x) or (scale is not None and scale.requires_grad)):
        if plain(x):
            return _AtOnce.apply(True, *arguments, *x)
        return torch.ops.ssl_kernels.softplus_mean(list(x), *arguments)[0]
    neg, pos, _ = self_lse(x, scale, multiplier, period=period, backend=backend)
    return mean_log_share(neg, pos)


def mean_log_share(neg: Tensor, pos: Tensor) -> Tensor:
    """Mean logarithm of one over the positive's share of its row: exact where that share rounds to one."""
    # linear above 40
    return F.softplus(neg - pos, 1.0, 40.0).mean()


def _check(x: Sequence[Tensor], scale: Tensor | None, period: int) -> int:
    rows = check_parts("x", x, "x[0]", x[0])
    if period < 1 or rows % period:
        raise ValueError(f"period: expected a positive divisor of the {rows} rows, got {period}")
    check_number("scale", scale, "x", x[0])
    return rows


# ------------------------------------------------------------------------------------- shapes without data (fake)
def _self_lse_fake(x, scale, multiplier, period, normalize, backend, coarse=False):
    rows = _check(x, scale, period)
    neg = x[0].new_empty(rows, dtype=accumulate_dtype(x[0].dtype))
    return neg, neg.new_empty((rows // period - 1, rows)), torch.empty_like(neg)


def _self_lse_backward_fake(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend, coarse=False):
    dscale = torch.empty_like(scale) if scale is not None else neg.new_empty(())
    return [t.new_empty(t.shape) for t in x], dscale


def _softplus_mean_fake(x, scale, multiplier, period, backend):
    _check(x, scale, period)
    loss = x[0].new_empty((), dtype=accumulate_dtype(x[0].dtype))
    dscale = torch.empty_like(scale) if scale is not None else torch.empty_like(loss)
    return loss, dscale, [t.new_empty(t.shape) for t in x]


# -------------------------------------------------------------------------------------------------- implementation
def _self_lse(x, scale, multiplier, period, normalize, backend, coarse=False):
    _check(x, scale, period)
    return backends.operation(backend, x[0].device, "self_lse")(x, scale, multiplier, period, normalize, coarse)


def _self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend, coarse=False):
    serve = backends.operation(backend, x[0].device, "self_lse_backward")
    return serve(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, coarse)


def _softplus_mean(x, scale, multiplier, period, backend):
    _check(x, scale, period)
    serve = backends.resolve(backend, x[0].device, "self_lse")
    if hasattr(serve, "softplus_mean"):
        return serve.softplus_mean(x, scale, multiplier, period)
    neg, pos, top = serve.self_lse(x, scale, multiplier, period, True)
    share = torch.sigmoid(neg - pos) / pos.numel()
    dx, dscale = serve.self_lse_backward(share.sum(0), -share, x, scale, multiplier, period, True, neg, top)
    return mean_log_share(neg, pos), dscale, dx


# ------------------------------------------------------------------------------------------------------- gradients
class _SelfLse(torch.autograd.Function):
    """Written out, not through ``register_autograd``: that costs 30 us a call more."""

    @staticmethod
    def forward(ctx, scale, multiplier, period, normalize, backend, coarse, *x):
        arguments = scale, multiplier, period, normalize, backend, coarse
        if plain(x):
            neg, pos, top = _self_lse(x, *arguments)
        else:
            with below_autograd():
                neg, pos, top = torch.ops.ssl_kernels.self_lse(list(x), *arguments)
        ctx.mark_non_differentiable(top)
        ctx.save_for_backward(neg, top, scale, *x)
        ctx.rest = multiplier, period, normalize, backend, coarse
        return neg, pos, top

    @staticmethod
    def backward(ctx, dneg, dpos, _):
        neg, top, scale, *x = ctx.saved_tensors
        dscale, *dx = once(_self_lse_backward_op, ctx.rest, dneg, dpos, neg, top, scale, *x)
        return (dscale if scale is not None else None, None, None, None, None, None, *dx)


def _self_lse_backward_op(rest, dneg, dpos, neg, top, scale, *x):
    multiplier, period, normalize, backend, coarse = rest
    run = _self_lse_backward if plain(x) else torch.ops.ssl_kernels.self_lse_backward
    dx, dscale = run(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend, coarse)
    return (dscale, *dx)


class _AtOnce(torch.autograd.Function):
    """softplus_mean, whose gradients come with it."""

    @staticmethod
    def forward(ctx, alone, scale, multiplier, period, backend, *x):
        if alone:
            loss, dscale, dx = _softplus_mean(x, scale, multiplier, period, backend)
        else:
            with below_autograd():
                loss, dscale, dx = torch.ops.ssl_kernels.softplus_mean(list(x), scale, multiplier, period, backend)
        ctx.mark_non_differentiable(dscale, *dx)
        ctx.save_for_backward(dscale, *dx, scale, *x)  # the inputs only so that second derivatives reach them and raise
        return loss if alone else (loss, dscale, *dx)

    @staticmethod
    def backward(ctx, g, *_):
        dscale, *dx = once(times, g, *ctx.saved_tensors)
        return (None, dscale if ctx.needs_input_grad[1] else None, None, None, None, *dx)


def _softplus_mean_autograd(x, scale, multiplier, period, backend):
    loss, dscale, *dx = _AtOnce.apply(False, scale, multiplier, period, backend, *x)
    return loss, dscale, dx


def times(g, dscale, *rest):
    """Gradients that came with a loss, as many more tensors than there are gradients of features after them."""
    dx = rest[: len(rest) // 2]
    return (g * dscale, *(g * d for d in dx))


def _self_lse_autograd(x, scale, multiplier, period, normalize, backend, coarse=False):
    return _SelfLse.apply(scale, multiplier, period, normalize, backend, coarse, *x)


define(
    "self_lse(Tensor[] x, Tensor? scale, float multiplier, SymInt period, bool normalize, str backend,"
    " bool coarse=False) -> (Tensor neg, Tensor pos, Tensor top)",
    _self_lse,
    _self_lse_fake,
    autograd=_self_lse_autograd,
    widen=1,
)
define(
    "self_lse_backward(Tensor dneg, Tensor dpos, Tensor[] x, Tensor? scale, float multiplier, SymInt period,"
    " bool normalize, Tensor neg, Tensor top, str backend, bool coarse=False) -> (Tensor[] dx, Tensor dscale)",
    _self_lse_backward,
    _self_lse_backward_fake,
)
define(
    "softplus_mean(Tensor[] x, Tensor? scale, float multiplier, SymInt period, str backend)"
    " -> (Tensor loss, Tensor dscale, Tensor[] dx)",
    _softplus_mean,
    _softplus_mean_fake,
    autograd=_softplus_mean_autograd,
    widen=1,
)
