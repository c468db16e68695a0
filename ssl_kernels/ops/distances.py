r"""Row reductions of similarities that fall off with the distance between points: t-SimCNE's part of the waist.

Which entries take part is the rule of :mod:`ssl_kernels.ops.within`: with ``M`` rows and a ``period`` dividing ``M``,
rows ``i`` and ``j`` belong to the same sample when ``(j - i) % period == 0``, and those are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_number, check_parts
from ssl_kernels.ops.library import below_autograd, define, once, plain


def student_lse(
    x: Sequence[Tensor],
    scale: Tensor | None = None,
    multiplier: float = 1.0,
    *,
    dof: float = 1.0,
    period: int,
    backend: str | None = None,
) -> Tensor:
    r"""Row log-sum-exp over the negatives of a set of points against itself, under a Student-t similarity.

    With ``z`` the rows of all ``x`` one below the other, :math:`T = \text{multiplier} \cdot \text{scale}` and
    :math:`d^2_{ij}` the squared distance of ``z_i`` and ``z_j``, summed up from differences (a matrix product has no
    digits left for points close together):

    .. math:: \mathrm{neg}_i = \log \sum_{j:\,(j-i) \bmod period \ne 0} e^{s_{ij}}, \qquad
              s_{ij} = -\tfrac{dof + 1}2 \log\left(1 + \frac{2 T d^2_{ij}}{dof}\right).

    One degree of freedom is the Cauchy similarity :math:`1 / (1 + 2 T d^2)`, for which no exponential is computed at
    all; infinitely many are the Gaussian, :math:`s = -T d^2`. The logits of the positives are few and the caller's to
    form: ``softplus(neg - pos)`` keeps its digits when they dominate, because they are not among the sums.

    Args:
        x: one or more tensors ``[N_k, D]`` of one dtype and device, float32/64, bfloat16 or float16; ``M = sum(N_k)``.
        scale: 0-d or one-element tensor that multiplies the squared distances, or None for 1; it gets a gradient.
        multiplier: a plain number that multiplies them too. Where ``T`` is negative, the result is NaN.
        dof: degrees of freedom, above 0; ``math.inf`` for a Gaussian.
        period: distance between rows of the same sample; divides ``M``.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``neg`` ``[M]``, float32 (float64 for float64); ``-inf`` without any negatives (``period = 1``). O(M D) memory,
        forward and backward.

    Raises:
        ValueError: shapes, dtypes or devices disagree, ``period`` does not divide ``M``, ``dof`` is not above 0,
            unknown backend.
        TypeError: not floating-point tensors.
    """
    if not x:  # said here, because the dispatcher finds no kernel for no tensors
        raise ValueError("x: expected at least one tensor, got none")
    arguments = scale, multiplier, float(dof), period, backend or backends.override()
    if plain(x):
        return _StudentLse.apply(*arguments, *x)[0]
    return torch.ops.ssl_kernels.student_lse(list(x), *arguments)[0]


def _check(x: Sequence[Tensor], scale: Tensor | None, dof: float, period: int) -> int:
    rows = check_parts("x", x, "x[0]", x[0])
    if period < 1 or rows % period:
        raise ValueError(f"period: expected a positive divisor of the {rows} rows, got {period}")
    if not dof > 0:
        raise ValueError(f"dof: expected a number above 0, got {dof}")
    check_number("scale", scale, "x", x[0])
    return rows


# ------------------------------------------------------------------------------------- shapes without data (fake)
def _student_lse_fake(x, scale, multiplier, dof, period, backend):
    rows = _check(x, scale, dof, period)
    neg = x[0].new_empty(rows, dtype=accumulate_dtype(x[0].dtype))
    return neg, torch.empty_like(neg)


def _student_lse_backward_fake(dneg, x, scale, multiplier, dof, period, neg, low, backend):
    dscale = torch.empty_like(scale) if scale is not None else neg.new_empty(())
    return [t.new_empty(t.shape) for t in x], dscale


# -------------------------------------------------------------------------------------------------- implementation
def _student_lse(x, scale, multiplier, dof, period, backend):
    _check(x, scale, dof, period)
    return backends.operation(backend, x[0].device, "student_lse")(x, scale, multiplier, dof, period)


def _student_lse_backward(dneg, x, scale, multiplier, dof, period, neg, low, backend):
    serve = backends.operation(backend, x[0].device, "student_lse_backward")
    return serve(dneg, x, scale, multiplier, dof, period, neg, low)


# ------------------------------------------------------------------------------------------------------- gradients
class _StudentLse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, multiplier, dof, period, backend, *x):
        if plain(x):
            neg, low = _student_lse(x, scale, multiplier, dof, period, backend)
        else:
            with below_autograd():
                neg, low = torch.ops.ssl_kernels.student_lse(list(x), scale, multiplier, dof, period, backend)
        ctx.mark_non_differentiable(low)
        ctx.save_for_backward(neg, low, scale, *x)
        ctx.rest = multiplier, dof, period, backend
        return neg, low

    @staticmethod
    def backward(ctx, dneg, _):
        neg, low, scale, *x = ctx.saved_tensors
        dscale, *dx = once(_student_lse_backward_op, ctx.rest, dneg, neg, low, scale, *x)
        return (dscale if ctx.needs_input_grad[0] else None, None, None, None, None, *dx)


def _student_lse_backward_op(rest, dneg, neg, low, scale, *x):
    multiplier, dof, period, backend = rest
    run = _student_lse_backward if plain(x) else torch.ops.ssl_kernels.student_lse_backward
    dx, dscale = run(dneg, x, scale, multiplier, dof, period, neg, low, backend)
    return (dscale, *dx)


def _student_lse_autograd(x, scale, multiplier, dof, period, backend):
    return _StudentLse.apply(scale, multiplier, dof, period, backend, *x)


define(
    "student_lse(Tensor[] x, Tensor? scale, float multiplier, float dof, SymInt period, str backend)"
    " -> (Tensor neg, Tensor low)",
    _student_lse,
    _student_lse_fake,
    autograd=_student_lse_autograd,
    widen=1,
)
define(
    "student_lse_backward(Tensor dneg, Tensor[] x, Tensor? scale, float multiplier, float dof, SymInt period,"
    " Tensor neg, Tensor low, str backend) -> (Tensor[] dx, Tensor dscale)",
    _student_lse_backward,
    _student_lse_backward_fake,
)
