r"""The waist: reductions over a similarity matrix that is never stored, as differentiable ``torch.library`` ops.

Everything above (losses, methods) speaks to these functions; everything below (backends) implements them. Schemas,
argument checks, shapes without data (fake), gradients and autocast live here, once, and nowhere else.

``self_lse`` reduces the rows of a set of embeddings against itself. Which entries take part is a *rule*, never an
array: with ``M`` rows and a ``period`` dividing ``M``, rows ``i`` and ``j`` belong to the same sample when
``(j - i) % period == 0``. The diagonal is left out, the twins (same sample, ``j != i``) are handed back as positives,
everything else is a negative. Two views of ``N`` samples have ``period = N``; ``period = M`` means no twins at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels import backends

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_LIB = torch.library.Library("ssl_kernels", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIB.define(
    "self_lse(Tensor[] x, Tensor? scale, float multiplier, SymInt period, bool normalize, str backend)"
    " -> (Tensor neg, Tensor pos, Tensor top)",
    tags=_TAGS,
)
_LIB.define(
    "self_lse_backward(Tensor dneg, Tensor dpos, Tensor[] x, Tensor? scale, float multiplier, SymInt period,"
    " bool normalize, Tensor neg, Tensor top, str backend) -> (Tensor[] dx, Tensor dscale)",
    tags=_TAGS,
)

_LIB.define(
    "softplus_mean(Tensor[] x, Tensor? scale, float multiplier, SymInt period, str backend)"
    " -> (Tensor loss, Tensor dscale, Tensor[] dx)",
    tags=_TAGS,
)

# Up to so many rows on a CPU, the gradients of softplus_mean are formed with it.
AT_ONCE = 512


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every result: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def self_lse(
    x: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    period: int,
    normalize: bool = True,
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
    arguments = scale, multiplier, period, normalize, backend or backends.override()
    if _plain(x):
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
        if _plain(x):
            return _AtOnce.apply(True, *arguments, *x)
        return torch.ops.ssl_kernels.softplus_mean(list(x), *arguments)[0]
    neg, pos, _ = self_lse(x, scale, multiplier, period=period, backend=backend)
    return _head(neg, pos)


def _head(neg: Tensor, pos: Tensor) -> Tensor:
    # log of one over the positive's share: exact where that share rounds to one. Linear above 40.
    return F.softplus(neg - pos, 1.0, 40.0).mean()


# ------------------------------------------------------------------------------------------------------ checks
def check_views(views: Sequence[Tensor], names: Sequence[str] = ("z1", "z2")) -> None:
    """Views of the same samples: alike in shape, dtype and device. Dtypes may differ under autocast, which widens."""
    first = views[0]
    for k, z in enumerate(views):
        name = names[k] if k < len(names) else f"more[{k - len(names)}]"
        _check_rows(name, z)
        if z.shape != first.shape:
            raise ValueError(f"{name}: expected shape {tuple(first.shape)} as {names[0]}, got {tuple(z.shape)}")
        _check_alike(name, z, names[0], first)
    if first.shape[0] == 0 or first.shape[1] == 0:
        raise ValueError(f"{names[0]}: expected at least one row and one column, got shape {tuple(first.shape)}")


def _check_rows(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions [N, D], got shape {tuple(t.shape)}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {t.dtype}")


def _check_alike(name: str, t: Tensor, first_name: str, first: Tensor) -> None:
    if t.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {t.device}")
    if t.dtype != first.dtype and not torch.is_autocast_enabled(t.device.type):
        raise ValueError(f"{name}: expected dtype {first.dtype} as {first_name}, got {t.dtype}")


def _check_self(x: Sequence[Tensor], scale: Tensor | None, period: int) -> int:
    first = x[0]
    rows = 0
    for k, t in enumerate(x):
        _check_rows(f"x[{k}]", t)
        _check_alike(f"x[{k}]", t, "x[0]", first)
        if t.shape[1] != first.shape[1]:
            raise ValueError(f"x[{k}]: expected width {first.shape[1]} as x[0], got {t.shape[1]}")
        rows += t.shape[0]
    if rows == 0 or first.shape[1] == 0:
        raise ValueError(f"x: expected at least one row and one column, got {rows} rows of width {first.shape[1]}")
    if period < 1 or rows % period:
        raise ValueError(f"period: expected a positive divisor of the {rows} rows, got {period}")
    if scale is not None:
        if scale.numel() != 1:
            raise ValueError(f"scale: expected one element, got shape {tuple(scale.shape)}")
        if not scale.is_floating_point():
            raise TypeError(f"scale: expected a floating-point tensor, got {scale.dtype}")
        if scale.device != first.device:
            raise ValueError(f"scale: expected device {first.device} as x, got {scale.device}")
    return rows


# ------------------------------------------------------------------------------------- shapes without data (fake)
@torch.library.register_fake("ssl_kernels::self_lse", lib=_LIB)
def _(x, scale, multiplier, period, normalize, backend):
    rows = _check_self(x, scale, period)
    neg = x[0].new_empty(rows, dtype=accumulate_dtype(x[0].dtype))
    return neg, neg.new_empty((rows // period - 1, rows)), torch.empty_like(neg)


@torch.library.register_fake("ssl_kernels::self_lse_backward", lib=_LIB)
def _(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend):
    dscale = torch.empty_like(scale) if scale is not None else neg.new_empty(())
    return [t.new_empty(t.shape) for t in x], dscale


@torch.library.register_fake("ssl_kernels::softplus_mean", lib=_LIB)
def _(x, scale, multiplier, period, backend):
    _check_self(x, scale, period)
    loss = x[0].new_empty((), dtype=accumulate_dtype(x[0].dtype))
    dscale = torch.empty_like(scale) if scale is not None else torch.empty_like(loss)
    return loss, dscale, [t.new_empty(t.shape) for t in x]


# -------------------------------------------------------------------------------------------------- implementation
def _self_lse(x, scale, multiplier, period, normalize, backend):
    _check_self(x, scale, period)
    return backends.resolve(backend, x[0].device).self_lse(x, scale, multiplier, period, normalize)


def _self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend):
    serve = backends.resolve(backend, x[0].device)
    return serve.self_lse_backward(dneg, dpos, x, scale, multiplier, period, normalize, neg, top)


def _softplus_mean(x, scale, multiplier, period, backend):
    _check_self(x, scale, period)
    serve = backends.resolve(backend, x[0].device)
    if hasattr(serve, "softplus_mean"):
        return serve.softplus_mean(x, scale, multiplier, period)
    neg, pos, top = serve.self_lse(x, scale, multiplier, period, True)
    share = torch.sigmoid(neg - pos) / pos.numel()
    dx, dscale = serve.self_lse_backward(share.sum(0), -share, x, scale, multiplier, period, True, neg, top)
    return _head(neg, pos), dscale, dx


# ------------------------------------------------------------------------------------------------------- gradients
def _plain(tensors: Sequence[Tensor]) -> bool:
    """Ordinary tensors and nobody watching: then the dispatcher has nothing to decide, and the op's implementation can
    be called as it is. Two trips through it cost 40 us a step, a third of all there is at N = 32."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_any_autocast_enabled()
        and len(tensors) > 0
        and all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta for t in tensors)
    )


class _SelfLse(torch.autograd.Function):
    """Written out, not through ``register_autograd``: that costs 30 us a call more."""

    @staticmethod
    def forward(ctx, scale, multiplier, period, normalize, backend, *x):
        if _plain(x):
            neg, pos, top = _self_lse(x, scale, multiplier, period, normalize, backend)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                neg, pos, top = torch.ops.ssl_kernels.self_lse(list(x), scale, multiplier, period, normalize, backend)
        ctx.mark_non_differentiable(top)
        ctx.save_for_backward(neg, top, scale, *x)
        ctx.rest = multiplier, period, normalize, backend
        return neg, pos, top

    @staticmethod
    def backward(ctx, dneg, dpos, _):
        neg, top, scale, *x = ctx.saved_tensors
        dscale, *dx = _once(_self_lse_backward_op, ctx.rest, dneg, dpos, neg, top, scale, *x)
        return (dscale if scale is not None else None, None, None, None, None, *dx)


def _self_lse_backward_op(rest, dneg, dpos, neg, top, scale, *x):
    multiplier, period, normalize, backend = rest
    run = _self_lse_backward if _plain(x) else torch.ops.ssl_kernels.self_lse_backward
    dx, dscale = run(dneg, dpos, x, scale, multiplier, period, normalize, neg, top, backend)
    return (dscale, *dx)


class _AtOnce(torch.autograd.Function):
    """softplus_mean, whose gradients come with it."""

    @staticmethod
    def forward(ctx, alone, scale, multiplier, period, backend, *x):
        if alone:
            loss, dscale, dx = _softplus_mean(x, scale, multiplier, period, backend)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                loss, dscale, dx = torch.ops.ssl_kernels.softplus_mean(list(x), scale, multiplier, period, backend)
        ctx.mark_non_differentiable(dscale, *dx)
        ctx.save_for_backward(dscale, *dx, scale, *x)  # the inputs only so that second derivatives reach them and raise
        return loss if alone else (loss, dscale, *dx)

    @staticmethod
    def backward(ctx, g, *_):
        dscale, *dx = _once(_times, g, *ctx.saved_tensors)
        return (None, dscale if ctx.needs_input_grad[1] else None, None, None, None, *dx)


def _softplus_mean_autograd(x, scale, multiplier, period, backend):
    loss, dscale, *dx = _AtOnce.apply(False, scale, multiplier, period, backend, *x)
    return loss, dscale, dx


def _times(g, dscale, *rest):
    dx = rest[: len(rest) // 2]
    return (g * dscale, *(g * d for d in dx))


def _once(run, *arguments):
    """``run(*arguments)``, whose results raise when they are differentiated in turn."""
    return _Once.apply(run, *arguments) if torch.is_grad_enabled() else run(*arguments)


class _Once(torch.autograd.Function):
    """Stands in the graph under ``create_graph=True`` only to say what is missing, where silence would be wrong."""

    @staticmethod
    def forward(ctx, run, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return run(*arguments)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "ssl_kernels: second derivatives are not available from the fused losses; use the loss's *_reference "
            "function, which is plain PyTorch and stores the similarity matrix"
        )


def _self_lse_autograd(x, scale, multiplier, period, normalize, backend):
    return _SelfLse.apply(scale, multiplier, period, normalize, backend, *x)


# -------------------------------------------------------------------------------------------------------- autocast
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _widest(tensors: Sequence[Tensor]) -> list[Tensor]:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in tensors]


def _widening(name: str):
    # Autocast may hand over views of different width (a bfloat16 and a float32 branch): widen, never narrow. The
    # reduction itself accumulates in float32 whatever comes in, so there is nothing else for autocast to decide.
    def run(x, *rest):
        if all(t.is_floating_point() for t in x):
            x = _widest(x)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return getattr(torch.ops.ssl_kernels, name)(x, *rest)

    return run


def _self_lse_backward_autocast(*args):
    # backward() inside the autocast region must not narrow the matrix products of a backend written in PyTorch either
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return torch.ops.ssl_kernels.self_lse_backward(*args)


_IMPLEMENTATIONS = {
    "self_lse": _self_lse,
    "self_lse_backward": _self_lse_backward,
    "softplus_mean": _softplus_mean,
}
for _name, _function in _IMPLEMENTATIONS.items():
    for _key in ("CPU", "CUDA"):
        _LIB.impl(_name, _function, _key)
_LIB.impl("self_lse", _self_lse_autograd, "Autograd")
_LIB.impl("softplus_mean", _softplus_mean_autograd, "Autograd")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _LIB.impl("self_lse", _widening("self_lse"), _key)
    _LIB.impl("softplus_mean", _widening("softplus_mean"), _key)
    _LIB.impl("self_lse_backward", _self_lse_backward_autocast, _key)
