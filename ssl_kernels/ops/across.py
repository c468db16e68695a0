r"""Row and column reductions of one set of embeddings against another: CLIP's, InfoNCE's and the queue's part.

Which entries take part is a rule, never an array: with an ``offset``, the entry ``(i, i + offset)`` is row ``i``'s
positive, is handed back by itself, and everything else is a negative. Local rows against gathered columns have the
offset of their rank; columns without a row that points at them (hard negatives) are negatives to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_matrix, check_number
from ssl_kernels.ops.library import below_autograd, define, once, plain

EPS = 1e-12  # as torch.nn.functional.normalize


class Reduced(NamedTuple):
    """One side of the matrix: what :func:`cross_lse` leaves of its rows, or of its columns."""

    neg: Tensor
    pos: Tensor
    top: Tensor


def cross_lse(
    x: Tensor,
    y: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    offset: int | None = None,
    normalize: bool = True,
    columns: bool = False,
    backend: str | None = None,
) -> tuple[Reduced, Reduced]:
    r"""Log-sum-exp over the negatives of every row, and if asked of every column, and the logits of the positives.

    With :math:`s_{ij} = \text{multiplier} \cdot \text{scale} \cdot x_i \cdot y_j`, ``y`` being the rows of all its
    tensors one below the other, both on the unit sphere if ``normalize``:

    .. math:: \mathrm{neg}_i = \log \sum_{j \ne i + \mathrm{offset}} e^{s_{ij}} - \mathrm{top}_i, \qquad
              \mathrm{pos}_i = s_{i, i + \mathrm{offset}} - \mathrm{top}_i,

    and for the columns the same with the sum over the rows. ``top`` is the larger of the two sides and a constant to
    autograd; ``neg + top`` is the plain log-sum-exp. Where no gradient is asked of ``y`` nor of columns (a queue), the
    gradient comes with the forward sweep: the sum of the columns weighted by their softmax is kept, ``[M, D]``.

    Args:
        x: rows ``[M, D]``, float32/64, bfloat16 or float16.
        y: one or more tensors ``[K_k, D]`` of the same dtype and device; ``K = sum(K_k)``.
        scale: one-element tensor that multiplies the logits, or None for 1; it gets a gradient.
        multiplier: a plain number that multiplies the logits too.
        offset: the column of row 0's positive, ``0 <= offset <= K - M``; None: no positives in the matrix.
        normalize: divide each row by ``max(norm, 1e-12)`` first (as ``torch.nn.functional.normalize`` does).
        columns: reduce the columns too, in the same sweep.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        Rows and columns as ``(neg, pos, top)``: ``neg`` and ``top`` ``[M]`` and ``[K]``, ``pos`` ``[M]`` on both sides
        (the column ``offset + i`` holds ``pos[i]``), float32 (float64 for float64); of no elements where there is
        nothing to return. O((M + K) D) memory, forward and backward.

    Raises:
        ValueError: shapes, dtypes or devices disagree, an offset that does not fit, unknown backend.
        TypeError: not floating-point tensors.
    """
    arguments = scale, multiplier, offset, normalize
    backend = backend or backends.override()
    asking = x.requires_grad or (scale is not None and scale.requires_grad)
    if asking and torch.is_grad_enabled() and not columns and not any(t.requires_grad for t in y):
        if plain([x, *y]):
            neg, pos, top, _ = _Attend.apply(*arguments, backend, x, *y)
        else:
            neg, pos, top, _ = torch.ops.ssl_kernels.attend_lse(x, list(y), *arguments, backend)
        nobody = neg.new_empty(0)
        return Reduced(neg, pos, top), Reduced(nobody, nobody, nobody)
    if plain([x, *y]):
        results = _CrossLse.apply(*arguments, columns, backend, x, *y)
    else:
        results = torch.ops.ssl_kernels.cross_lse(x, list(y), *arguments, columns, backend)
    return Reduced(*results[:3]), Reduced(*results[3:])


def _check(x, y, scale, offset) -> int:
    count = check_matrix(x, y, offset)
    check_number("scale", scale, "x", x)
    return count


def _side(x, length, positives):
    neg = x.new_empty(length, dtype=accumulate_dtype(x.dtype))
    return neg, neg.new_empty(positives), torch.empty_like(neg)


# ------------------------------------------------------------------------------------- shapes without data (fake)
def _cross_lse_fake(x, y, scale, multiplier, offset, normalize, columns, backend):
    count = _check(x, y, scale, offset)
    positives = 0 if offset is None else x.shape[0]
    return *_side(x, x.shape[0], positives), *(_side(x, count, positives) if columns else _side(x, 0, 0))


def _cross_lse_backward_fake(
    dneg, dpos, dneg_y, dpos_y, x, y, scale, multiplier, offset, normalize,
    neg, top, neg_y, top_y, want_x, want_y, backend,
):  # fmt: skip
    dx = x.new_empty(x.shape if want_x else (0,))
    dy = [t.new_empty(t.shape if want_y else (0,)) for t in y]
    return dx, dy, torch.empty_like(scale) if scale is not None else neg.new_empty(())


def _attend_lse_fake(x, y, scale, multiplier, offset, normalize, backend):
    _check(x, y, scale, offset)
    rows = _side(x, x.shape[0], 0 if offset is None else x.shape[0])
    return *rows, rows[0].new_empty(x.shape)


# -------------------------------------------------------------------------------------------------- implementation
def _cross_lse(x, y, scale, multiplier, offset, normalize, columns, backend):
    _check(x, y, scale, offset)
    return backends.operation(backend, x.device, "cross_lse")(x, y, scale, multiplier, offset, normalize, columns)


def _cross_lse_backward(
    dneg, dpos, dneg_y, dpos_y, x, y, scale, multiplier, offset, normalize,
    neg, top, neg_y, top_y, want_x, want_y, backend,
):  # fmt: skip
    return backends.operation(backend, x.device, "cross_lse_backward")(
        dneg, dpos, dneg_y, dpos_y, x, y, scale, multiplier, offset, normalize, neg, top, neg_y, top_y, want_x, want_y
    )


def _attend_lse(x, y, scale, multiplier, offset, normalize, backend):
    _check(x, y, scale, offset)
    return backends.operation(backend, x.device, "attend_lse")(x, y, scale, multiplier, offset, normalize)


# ------------------------------------------------------------------------------------------------------- gradients
class _CrossLse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, multiplier, offset, normalize, columns, backend, x, *y):
        arguments = scale, multiplier, offset, normalize, columns, backend
        if plain([x, *y]):
            results = _cross_lse(x, y, *arguments)
        else:
            with below_autograd():
                results = torch.ops.ssl_kernels.cross_lse(x, list(y), *arguments)
        neg, _, top, neg_y, _, top_y = results
        ctx.mark_non_differentiable(top, top_y)
        ctx.save_for_backward(neg, top, neg_y, top_y, scale, x, *y)
        ctx.rest = multiplier, offset, normalize, backend
        return results

    @staticmethod
    def backward(ctx, dneg, dpos, _, dneg_y, dpos_y, __):
        neg, top, neg_y, top_y, scale, x, *y = ctx.saved_tensors
        want_x, want_y = ctx.needs_input_grad[6], any(ctx.needs_input_grad[7:])
        given = dneg, dpos, dneg_y, dpos_y, neg, top, neg_y, top_y, scale, x, *y
        dscale, dx, *dy = once(_cross_lse_backward_op, (*ctx.rest, want_x, want_y), *given)
        dscale = dscale if ctx.needs_input_grad[0] else None
        return dscale, None, None, None, None, None, dx if want_x else None, *(dy if want_y else [None] * len(y))


def _cross_lse_backward_op(rest, dneg, dpos, dneg_y, dpos_y, neg, top, neg_y, top_y, scale, x, *y):
    multiplier, offset, normalize, backend, want_x, want_y = rest
    run = _cross_lse_backward if plain([x, *y]) else torch.ops.ssl_kernels.cross_lse_backward
    logits = scale, multiplier, offset, normalize
    kept = neg, top, neg_y, top_y
    dx, dy, dscale = run(dneg, dpos, dneg_y, dpos_y, x, list(y), *logits, *kept, want_x, want_y, backend)
    return (dscale, dx, *dy)


class _Attend(torch.autograd.Function):
    """Keeps what the softmax of a row made of the columns; all that is left for backward is a line of algebra."""

    @staticmethod
    def forward(ctx, scale, multiplier, offset, normalize, backend, x, *y):
        arguments = scale, multiplier, offset, normalize, backend
        if plain([x, *y]):
            neg, pos, top, mean = _attend_lse(x, y, *arguments)
        else:
            with below_autograd():
                neg, pos, top, mean = torch.ops.ssl_kernels.attend_lse(x, list(y), *arguments)
        ctx.mark_non_differentiable(top, mean)
        # the columns only where a positive is among them; they need no gradient and are the caller's
        ctx.save_for_backward(scale, x, mean, *(y if offset is not None else ()))
        ctx.rest = multiplier, offset, normalize
        return neg, pos, top, mean

    @staticmethod
    def backward(ctx, dneg, dpos, _, __):
        scale, *saved = ctx.saved_tensors
        dscale, dx = once(_attend_backward, ctx.rest, dneg, dpos, scale, *saved)
        blank = (None,) * (len(ctx.needs_input_grad) - 6)
        return dscale if ctx.needs_input_grad[0] else None, None, None, None, None, dx, *blank


def _attend_backward(rest, dneg, dpos, scale, x, mean, *y):
    multiplier, offset, normalize = rest
    dtype = mean.dtype
    z = x.to(dtype)
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    by = torch.where(norm < EPS, EPS, norm)
    z = z / by if normalize else z
    received = dneg[:, None] * mean
    if offset is not None:
        p = _rows_from(y, offset, len(x)).to(dtype)
        p = p / torch.linalg.vector_norm(p, dim=1, keepdim=True).clamp_min(EPS) if normalize else p
        received = received + dpos[:, None] * p
    along = (z * received).sum(1, keepdim=True)
    factor = multiplier if scale is None else multiplier * scale.to(dtype).reshape(())
    dx = factor * received
    if normalize:
        huge = dx / EPS  # of a row of zeros; finite in float32, and kept so in what is narrower
        if x.dtype in (torch.float16, torch.bfloat16):
            most = torch.finfo(x.dtype).max
            huge = huge.clamp(-most, most)
        dx = torch.where(norm < EPS, huge, (dx - factor * along * z) / by)
    dscale = dneg.new_zeros(()) if scale is None else (multiplier * along.sum()).to(scale.dtype).reshape(scale.shape)
    return dscale, dx.to(x.dtype)


def _rows_from(parts: Sequence[Tensor], first: int, count: int) -> Tensor:
    """Rows ``first .. first + count`` of tensors that stand one below the other."""
    found = []
    for t in parts:
        a, b = max(first, 0), min(first + count, len(t))
        if a < b:
            found.append(t[a:b])
        first -= len(t)
    return found[0] if len(found) == 1 else torch.cat(found)


def _cross_lse_autograd(x, y, scale, multiplier, offset, normalize, columns, backend):
    return _CrossLse.apply(scale, multiplier, offset, normalize, columns, backend, x, *y)


def _attend_lse_autograd(x, y, scale, multiplier, offset, normalize, backend):
    return _Attend.apply(scale, multiplier, offset, normalize, backend, x, *y)


define(
    "cross_lse(Tensor x, Tensor[] y, Tensor? scale, float multiplier, SymInt? offset, bool normalize, bool columns,"
    " str backend) -> (Tensor neg, Tensor pos, Tensor top, Tensor neg_y, Tensor pos_y, Tensor top_y)",
    _cross_lse,
    _cross_lse_fake,
    autograd=_cross_lse_autograd,
    widen=2,
)
define(
    "cross_lse_backward(Tensor dneg, Tensor dpos, Tensor dneg_y, Tensor dpos_y, Tensor x, Tensor[] y, Tensor? scale,"
    " float multiplier, SymInt? offset, bool normalize, Tensor neg, Tensor top, Tensor neg_y, Tensor top_y,"
    " bool want_x, bool want_y, str backend) -> (Tensor dx, Tensor[] dy, Tensor dscale)",
    _cross_lse_backward,
    _cross_lse_backward_fake,
)
define(
    "attend_lse(Tensor x, Tensor[] y, Tensor? scale, float multiplier, SymInt? offset, bool normalize, str backend)"
    " -> (Tensor neg, Tensor pos, Tensor top, Tensor mean)",
    _attend_lse,
    _attend_lse_fake,
    autograd=_attend_lse_autograd,
    widen=2,
)
