r"""Cross-entropies between the softmaxes of a teacher's and a student's views, logits given: DINO's part of the waist.

Rows stand one below the other, a view at a time: with a ``batch`` of B samples row ``v * B + b`` is view ``v`` of
sample ``b``. The sum over the pairs of views is linear in the teacher's probabilities, so a row of the student needs
one log-softmax however many views of the teacher it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import accumulate_dtype, check_parts
from ssl_kernels.ops.library import below_autograd, define, once, plain


def view_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor | None = None,
    *,
    batch: int,
    student_temp: float,
    teacher_temp: float | None,
    same: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropies of every sample, summed over the pairs of a teacher's view with another view of the student.

    .. math:: h_b = -\sum_{t} \sum_{v \ne t} \sum_k p_{tbk} \log \mathrm{softmax}_k(s_{vb} / \tau_s), \qquad
              p_{tb} = \mathrm{softmax}\Bigl(\frac{\mathrm{teacher}_{tb} - \mathrm{center}_t}{\tau_t}\Bigr)

    Each logit is read once forward, read and its gradient written once backward; what is kept are two numbers a row.
    The teacher's logits get no gradient. Its probabilities do, where they are given instead.

    Args:
        student: one or more tensors ``[N_k, K]``, ``V * B`` rows together, float32/64, bfloat16 or float16.
        teacher: the same, ``T * B`` rows, of the same dtype and device.
        center: ``[C, K]``, taken from the teacher's logits: one for all views (``C = 1``) or one each (``C = T``);
            float32, or float64 for float64. A constant to autograd.
        batch: B.
        student_temp, teacher_temp: what logits are divided by, above 0; ``teacher_temp=None``: the teacher's rows are
            probabilities already, taken as they are.
        same: count the pairs of a view with itself too.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``[B]``, float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, rows that are no whole views, no pair of views, a temperature
            that is not above 0, unknown backend.
        TypeError: not floating-point tensors.
    """
    for name, tensors in (("student", student), ("teacher", teacher)):
        if not tensors:  # said here, because the dispatcher finds no kernel for no tensors
            raise ValueError(f"{name}: expected at least one tensor, got none")
    arguments = center, batch, student_temp, teacher_temp, same, backend or backends.override()
    if plain([*student, *teacher]):
        return _ViewCrossEntropy.apply(*arguments, len(student), *student, *teacher)[0]
    return torch.ops.ssl_kernels.view_cross_entropy(list(student), list(teacher), *arguments)[0]


def view_cross_entropy_sum(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor | None,
    weight: Tensor,
    *,
    batch: int,
    student_temp: float,
    teacher_temp: float | None,
    same: bool = False,
    backend: str | None = None,
) -> Tensor:
    """``(weight * view_cross_entropy(...)).sum()``, the loss of a batch; ``weight`` is ``[B]`` and a constant.

    On a CPU, where memory is the bound, the gradient comes with the loss: the student's rows are still in the cache.
    Not in float16: its gradients must be formed after a gradient scaler has scaled the loss, lest they vanish.
    """
    rows = [*student, *teacher]
    at_once = len(rows) > 0 and all(t.device.type == "cpu" and t.dtype != torch.float16 for t in rows)
    at_once = at_once and torch.is_grad_enabled() and any(t.requires_grad for t in student)
    if not at_once or (teacher_temp is None and any(t.requires_grad for t in teacher)):
        value = view_cross_entropy(
            student, teacher, center,
            batch=batch, student_temp=student_temp, teacher_temp=teacher_temp, same=same, backend=backend,
        )  # fmt: skip
        return (weight.to(value.dtype) * value).sum()
    arguments = center, weight, batch, student_temp, teacher_temp, same, backend or backends.override()
    if plain(rows):
        return _AtOnce.apply(True, *arguments, len(student), *rows)
    return torch.ops.ssl_kernels.view_cross_entropy_sum(list(student), list(teacher), *arguments)[0]


def _check(student, teacher, center, batch, student_temp, teacher_temp, same) -> tuple[int, int]:
    """How many views either side has."""
    views = []
    for name, tensors in (("student", student), ("teacher", teacher)):
        rows = check_parts(name, tensors, "student[0]", student[0])
        if batch < 1 or rows % batch:
            raise ValueError(f"{name}: expected whole views of {batch} rows, got {rows} rows")
        views.append(rows // batch)
    if not same and views == [1, 1]:
        raise ValueError("student: expected a view that the teacher does not have, got one view of each")
    for name, temp in (("student_temp", student_temp), ("teacher_temp", teacher_temp)):
        if temp is not None and not temp > 0:
            raise ValueError(f"{name}: expected a number above 0, got {temp}")
    if center is not None:
        x = student[0]
        if teacher_temp is None:
            raise ValueError("center: expected None beside probabilities of the teacher, got a tensor")
        if center.dim() != 2 or center.shape[0] not in (1, views[1]) or center.shape[1] != x.shape[1]:
            expected = f"[1, {x.shape[1]}] or [{views[1]}, {x.shape[1]}]"
            raise ValueError(f"center: expected shape {expected}, got {tuple(center.shape)}")
        if center.dtype != accumulate_dtype(x.dtype):
            raise ValueError(f"center: expected {accumulate_dtype(x.dtype)}, got {center.dtype}")
        if center.device != x.device:
            raise ValueError(f"center: expected device {x.device} as student, got {center.device}")
    return views[0], views[1]


# ------------------------------------------------------------------------------------- shapes without data (fake)
def _fake(student, teacher, center, batch, student_temp, teacher_temp, same, backend):
    students, teachers = _check(student, teacher, center, batch, student_temp, teacher_temp, same)
    value = student[0].new_empty(batch, dtype=accumulate_dtype(student[0].dtype))
    return value, value.new_empty(2, (students + teachers) * batch)


def _backward_fake(
    dvalue, student, teacher, center, batch, student_temp, teacher_temp, same, kept, want_student, want_teacher, backend
):
    return (
        [t.new_empty(t.shape if want_student else (0,)) for t in student],
        [t.new_empty(t.shape if want_teacher else (0,)) for t in teacher],
    )


def _sum_fake(student, teacher, center, weight, batch, student_temp, teacher_temp, same, backend):
    value, _ = _fake(student, teacher, center, batch, student_temp, teacher_temp, same, backend)
    return value.new_empty(()), [t.new_empty(t.shape) for t in student]


# -------------------------------------------------------------------------------------------------- implementation
def _implementation(student, teacher, center, batch, student_temp, teacher_temp, same, backend):
    _check(student, teacher, center, batch, student_temp, teacher_temp, same)
    serve = backends.operation(backend, student[0].device, "view_cross_entropy")
    return serve(student, teacher, center, batch, student_temp, teacher_temp, same)


def _backward_implementation(
    dvalue, student, teacher, center, batch, student_temp, teacher_temp, same, kept, want_student, want_teacher, backend
):
    given = student, teacher, center, batch, student_temp, teacher_temp, same, kept, want_student, want_teacher
    return backends.operation(backend, student[0].device, "view_cross_entropy_backward")(dvalue, *given)


def _sum_implementation(student, teacher, center, weight, batch, student_temp, teacher_temp, same, backend):
    _check(student, teacher, center, batch, student_temp, teacher_temp, same)
    rest = student, teacher, center, batch, student_temp, teacher_temp, same
    serve = backends.resolve(backend, student[0].device, "view_cross_entropy")
    weight = weight.to(accumulate_dtype(student[0].dtype))
    if hasattr(serve, "view_cross_entropy_at_once"):
        value, dstudent = serve.view_cross_entropy_at_once(weight, *rest)
    else:
        value, kept = serve.view_cross_entropy(*rest)
        dstudent, _ = serve.view_cross_entropy_backward(weight, *rest, kept, True, False)
    return (weight * value).sum(), dstudent


# ------------------------------------------------------------------------------------------------------- gradients
class _ViewCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, center, batch, student_temp, teacher_temp, same, backend, students, *rows):
        rest = center, batch, student_temp, teacher_temp, same, backend
        student, teacher = rows[:students], rows[students:]
        if plain(rows):
            value, kept = _implementation(student, teacher, *rest)
        else:
            with below_autograd():
                value, kept = torch.ops.ssl_kernels.view_cross_entropy(list(student), list(teacher), *rest)
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(center, kept, *rows)
        ctx.rest = students, batch, student_temp, teacher_temp, same, backend
        return value, kept

    @staticmethod
    def backward(ctx, dvalue, _):
        students, _, _, teacher_temp, _, _ = ctx.rest
        wanted = ctx.needs_input_grad[7:]
        want = any(wanted[:students]), any(wanted[students:]) and teacher_temp is None
        grads = once(_backward_op, (*ctx.rest, *want), dvalue, *ctx.saved_tensors)
        mine = [want[k >= students] and asked for k, asked in enumerate(wanted)]
        return *(None,) * 7, *(d if asked else None for d, asked in zip(grads, mine, strict=True))


def _backward_op(rest, dvalue, center, kept, *rows):
    students, batch, student_temp, teacher_temp, same, backend, want_student, want_teacher = rest
    run = _backward_implementation if plain(rows) else torch.ops.ssl_kernels.view_cross_entropy_backward
    given = list(rows[:students]), list(rows[students:]), center, batch, student_temp, teacher_temp, same, kept
    dstudent, dteacher = run(dvalue, *given, want_student, want_teacher, backend)
    return *dstudent, *dteacher


def _autograd(student, teacher, center, batch, student_temp, teacher_temp, same, backend):
    rest = center, batch, student_temp, teacher_temp, same, backend, len(student)
    return _ViewCrossEntropy.apply(*rest, *student, *teacher)


class _AtOnce(torch.autograd.Function):
    """view_cross_entropy_sum, whose gradient comes with it."""

    @staticmethod
    def forward(ctx, alone, center, weight, batch, student_temp, teacher_temp, same, backend, students, *rows):
        arguments = center, weight, batch, student_temp, teacher_temp, same, backend
        student, teacher = rows[:students], rows[students:]
        if alone:
            loss, dstudent = _sum_implementation(student, teacher, *arguments)
        else:
            with below_autograd():
                op = torch.ops.ssl_kernels.view_cross_entropy_sum
                loss, dstudent = op(list(student), list(teacher), *arguments)
        ctx.mark_non_differentiable(*dstudent)
        ctx.save_for_backward(*dstudent, *student)  # these only so that second derivatives reach them and raise
        ctx.teachers = len(teacher)
        return loss if alone else (loss, *dstudent)

    @staticmethod
    def backward(ctx, g, *_):
        grads = once(_times, g, *ctx.saved_tensors)
        wanted = ctx.needs_input_grad[9:]
        dstudent = (d if asked else None for d, asked in zip(grads, wanted, strict=False))
        return *(None,) * 9, *dstudent, *(None,) * ctx.teachers


def _times(g, *rest):
    dstudent = rest[: len(rest) // 2]
    if plain([g]) and g.item() == 1:  # a loss that stands alone: its gradient is not copied
        return dstudent
    return tuple(g.to(d.dtype) * d for d in dstudent)


def _sum_autograd(student, teacher, center, weight, batch, student_temp, teacher_temp, same, backend):
    rest = center, weight, batch, student_temp, teacher_temp, same, backend, len(student)
    loss, *dstudent = _AtOnce.apply(False, *rest, *student, *teacher)
    return loss, dstudent


define(
    "view_cross_entropy(Tensor[] student, Tensor[] teacher, Tensor? center, SymInt batch, float student_temp,"
    " float? teacher_temp, bool same, str backend) -> (Tensor value, Tensor kept)",
    _implementation,
    _fake,
    autograd=_autograd,
    widen=2,
)
define(
    "view_cross_entropy_backward(Tensor dvalue, Tensor[] student, Tensor[] teacher, Tensor? center, SymInt batch,"
    " float student_temp, float? teacher_temp, bool same, Tensor kept, bool want_student, bool want_teacher,"
    " str backend) -> (Tensor[] dstudent, Tensor[] dteacher)",
    _backward_implementation,
    _backward_fake,
)
define(
    "view_cross_entropy_sum(Tensor[] student, Tensor[] teacher, Tensor? center, Tensor weight, SymInt batch,"
    " float student_temp, float? teacher_temp, bool same, str backend) -> (Tensor loss, Tensor[] dstudent)",
    _sum_implementation,
    _sum_fake,
    autograd=_sum_autograd,
    widen=2,
)
