r"""Products of rows with prototypes that are never stored: DINO's head together with its loss.

The logits ``x W^T`` are a similarity matrix between rows and prototypes. A cross-entropy between softmaxes over the
prototypes needs a log-sum-exp a row, and for each pair of rows the sum of one's probabilities times the other's logits:
a block of prototypes at a time adds to all of them. Once they are known, a block of logits computed again gives a block
of their gradient, and that its part of the gradients of rows and prototypes. Two numbers a row are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_alike, check_not_empty, check_rows, check_width
from ssl_kernels.ops.library import below_autograd, define, once, plain


def prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor | None = None,
    *,
    batch: int,
    student_temp: float,
    teacher_temp: float,
    same: bool = False,
    backend: str | None = None,
) -> Tensor:
    r""":func:`view_cross_entropy` of logits ``student @ prototypes.T`` and ``teacher @ teacher_prototypes.T``.

    Neither is stored, nor anything else of their size, forward or backward; but where the memory of the prototypes'
    gradient has room for them (no more rows than D, one dtype), it holds them until then. ``student`` and
    ``prototypes`` get gradients, the teacher is a constant.

    Args:
        student: ``[V * B, D]``, a view below the other, float32/64, bfloat16 or float16.
        teacher: ``[T * B, D]`` of the same dtype and device.
        prototypes, teacher_prototypes: ``[K, D]``, alike.
        center: ``[1, K]`` or ``[T, K]``, taken from the teacher's logits; float32, or float64 for float64.
        batch, student_temp, teacher_temp, same, backend: as in :func:`view_cross_entropy`.

    Returns:
        ``[B]``, float32 (float64 for float64). Two numbers a row are kept for backward.

    Raises:
        ValueError: shapes, dtypes or devices disagree, rows that are no whole views, no pair of views, a temperature
            that is not above 0, unknown backend.
        TypeError: not floating-point tensors.
    """
    rest = center, batch, student_temp, teacher_temp, same, backend or backends.override()
    given = student, teacher, prototypes, teacher_prototypes
    if plain(given):
        return _PrototypeCrossEntropy.apply(*given, *rest)[0]
    return torch.ops.ssl_kernels.prototype_cross_entropy(*given, *rest)[0]


def _check(student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same):
    check_rows("student", student)
    check_not_empty("student", student)
    check_width("teacher", teacher, "student", student)
    check_not_empty("teacher", teacher)
    for name, t in (("prototypes", prototypes), ("teacher_prototypes", teacher_prototypes)):
        check_width(name, t, "student", student)
        check_not_empty(name, t)
        if t.shape != prototypes.shape:
            raise ValueError(f"{name}: expected shape {tuple(prototypes.shape)} as prototypes, got {tuple(t.shape)}")
    for name, t in (("student", student), ("teacher", teacher)):
        if batch < 1 or t.shape[0] % batch:
            raise ValueError(f"{name}: expected whole views of {batch} rows, got {t.shape[0]} rows")
    if not same and student.shape[0] == teacher.shape[0] == batch:
        raise ValueError("student: expected a view that the teacher does not have, got one view of each")
    for name, temp in (("student_temp", student_temp), ("teacher_temp", teacher_temp)):
        if not temp > 0:
            raise ValueError(f"{name}: expected a number above 0, got {temp}")
    if center is not None:
        k, teachers = prototypes.shape[0], teacher.shape[0] // batch
        if center.dim() != 2 or center.shape[0] not in (1, teachers) or center.shape[1] != k:
            raise ValueError(f"center: expected shape [1, {k}] or [{teachers}, {k}], got {tuple(center.shape)}")
        if center.dtype != accumulate_dtype(student.dtype):
            raise ValueError(f"center: expected {accumulate_dtype(student.dtype)}, got {center.dtype}")
        check_alike("center", center.to(student.dtype), "student", student)


def prototype_lse(
    x: Tensor, prototypes: Tensor, bias: Tensor | None, multiplier: float, *, dim: int, backend: str | None = None
) -> Tensor:
    r"""Log-sum-exp of ``multiplier * x @ prototypes.T``, which is not stored, plus a bias along what is summed over.

    Args:
        x: ``[N, D]``, float32/64, bfloat16 or float16.
        prototypes: ``[K, D]``, alike.
        bias: ``[K]`` for ``dim=1``, ``[N]`` for ``dim=0``, or None for zeros; float32, or float64 for float64.
        multiplier: multiplies the products.
        dim: 1 to sum over prototypes, 0 over rows.
        backend: as everywhere.

    Returns:
        ``[N]`` for ``dim=1``, ``[K]`` for ``dim=0``, float32 (float64 for float64), without a gradient.

    Raises:
        ValueError: shapes, dtypes or devices disagree, another dim, unknown backend.
        TypeError: not floating-point tensors.
    """
    with torch.no_grad():
        name = backend or backends.override()
        return torch.ops.ssl_kernels.prototype_lse(x, prototypes, bias, multiplier, dim, name)


def _check_lse(x, prototypes, bias, dim) -> None:
    check_rows("x", x)
    check_not_empty("x", x)
    check_width("prototypes", prototypes, "x", x)
    check_not_empty("prototypes", prototypes)
    check_bias(bias, dim, (x.shape[0], prototypes.shape[0]), x)


def check_bias(bias: Tensor | None, dim: int, shape: tuple[int, int], like: Tensor) -> None:
    """One number for each of what a log-sum-exp along ``dim`` of a matrix of that shape sums over."""
    if dim not in (0, 1):
        raise ValueError(f"dim: expected 0 or 1, got {dim}")
    if bias is not None and (bias.shape != (shape[dim],) or bias.dtype != accumulate_dtype(like.dtype)):
        expected = f"[{shape[dim]}] of {accumulate_dtype(like.dtype)}"
        raise ValueError(f"bias: expected shape {expected}, got {tuple(bias.shape)} of {bias.dtype}")


# ------------------------------------------------------------------------------------- shapes without data (fake)
def _fake(
    student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same, backend
):  # fmt: skip
    _check(student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same)
    value = student.new_empty(batch, dtype=accumulate_dtype(student.dtype))
    return value, value.new_empty(2, student.shape[0] + teacher.shape[0])


def _backward_fake(
    dvalue, student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same,
    kept, want_student, want_prototypes, backend,
):  # fmt: skip
    return (
        student.new_empty(student.shape if want_student else (0,)),
        prototypes.new_empty(prototypes.shape if want_prototypes else (0,)),
    )


def _lse_fake(x, prototypes, bias, multiplier, dim, backend):
    _check_lse(x, prototypes, bias, dim)
    return x.new_empty((prototypes if dim == 0 else x).shape[0], dtype=accumulate_dtype(x.dtype))


# -------------------------------------------------------------------------------------------------- implementation
def _implementation(student, *rest):
    *given, backend = rest
    _check(student, *given)
    return backends.operation(backend, student.device, "prototype_cross_entropy")(student, *given)


def _implementation_in_room(student, teacher, prototypes, *rest):
    """The same, and the room it took, which the backward sweep of the same backend wants."""
    *given, backend = rest
    _check(student, teacher, prototypes, *given)
    room = _room(student, teacher, prototypes, backend)
    run = backends.operation(backend, student.device, "prototype_cross_entropy")
    return run(student, teacher, prototypes, *given, **room), room


def _backward_implementation(dvalue, student, *rest, **room):
    *given, backend = rest
    run = backends.operation(backend, student.device, "prototype_cross_entropy_backward")
    return run(dvalue, student, *given, **room)


def _room(student, teacher, prototypes, backend) -> dict[str, Tensor]:
    """Memory for the prototypes' gradient, allocated by the forward sweep already where it holds all logits until then.

    With as few rows as that, products are nearly all there is to the loss, and these need not be computed twice.
    """
    fits = student.shape[0] + teacher.shape[0] <= prototypes.shape[1]
    if not fits or prototypes.dtype != accumulate_dtype(student.dtype):
        return {}
    serve = backends.resolve(backend, student.device, "prototype_cross_entropy")
    return {"room": serve.prototype_room(prototypes)} if hasattr(serve, "prototype_room") else {}


def _lse_implementation(x, prototypes, bias, multiplier, dim, backend):
    _check_lse(x, prototypes, bias, dim)
    return backends.operation(backend, x.device, "prototype_lse")(x, prototypes, bias, multiplier, dim)


# ------------------------------------------------------------------------------------------------------- gradients
class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, prototypes, teacher_prototypes, center, *rest):
        given = student, teacher, prototypes, teacher_prototypes, center
        ctx.room = {}
        if plain(given[:4]) and ctx.needs_input_grad[2]:
            results, ctx.room = _implementation_in_room(*given, *rest)
        elif plain(given[:4]):
            results = _implementation(*given, *rest)
        else:
            with below_autograd():
                results = torch.ops.ssl_kernels.prototype_cross_entropy(*given, *rest)
        ctx.mark_non_differentiable(results[1])
        ctx.save_for_backward(*given, results[1])
        ctx.rest = rest
        return results

    @staticmethod
    def backward(ctx, dvalue, _):
        want = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        room, ctx.room = ctx.room, {}  # used up: a second time through the same graph does without
        dstudent, dprototypes = once(_backward_op, (*ctx.rest, want), room, dvalue, *ctx.saved_tensors)
        return dstudent if want[0] else None, None, dprototypes if want[1] else None, *(None,) * 7


def _backward_op(rest, room, dvalue, *saved):
    *numbers, backend, want = rest
    run = _backward_implementation if plain(saved[:4]) else torch.ops.ssl_kernels.prototype_cross_entropy_backward
    return run(dvalue, *saved[:5], *numbers, *saved[5:], *want, backend, **(room if plain(saved[:4]) else {}))


def _autograd(*given):
    return _PrototypeCrossEntropy.apply(*given)


define(
    "prototype_cross_entropy(Tensor student, Tensor teacher, Tensor prototypes, Tensor teacher_prototypes,"
    " Tensor? center, SymInt batch, float student_temp, float teacher_temp, bool same, str backend)"
    " -> (Tensor value, Tensor kept)",
    _implementation,
    _fake,
    autograd=_autograd,
    widen=4,
)
define(
    "prototype_cross_entropy_backward(Tensor dvalue, Tensor student, Tensor teacher, Tensor prototypes,"
    " Tensor teacher_prototypes, Tensor? center, SymInt batch, float student_temp, float teacher_temp, bool same,"
    " Tensor kept, bool want_student, bool want_prototypes, str backend)"
    " -> (Tensor dstudent, Tensor dprototypes)",
    _backward_implementation,
    _backward_fake,
)
define(
    "prototype_lse(Tensor x, Tensor prototypes, Tensor? bias, float multiplier, int dim, str backend) -> Tensor",
    _lse_implementation,
    _lse_fake,
    widen=2,
)
