"""Cross-entropies between views: the rows of a sample pass by while its teacher's probabilities stay in the cache."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import DTYPES, results_dtype, rows


def view_cross_entropy(student, teacher, center, batch, student_temp, teacher_temp, same):
    student, teacher = [rows(t) for t in student], [rows(t) for t in teacher]
    value = torch.empty(batch, dtype=results_dtype(student[0]))
    kept = value.new_zeros(2, sum(t.shape[0] for t in (*student, *teacher)))
    given = student, teacher, center, batch, student_temp, teacher_temp, same, kept
    _run(*given, value=value.data_ptr())
    return value, kept


def view_cross_entropy_backward(
    dvalue, student, teacher, center, batch, student_temp, teacher_temp, same, kept, want_student, want_teacher
):
    student, teacher, dvalue = [rows(t) for t in student], [rows(t) for t in teacher], dvalue.contiguous()
    dstudent = [torch.empty(t.shape if want_student else (0,), dtype=t.dtype) for t in student]
    dteacher = [torch.empty(t.shape if want_teacher else (0,), dtype=t.dtype) for t in teacher]
    given = student, teacher, center, batch, student_temp, teacher_temp, same, kept
    to = {"dstudent": dstudent if want_student else [], "dteacher": dteacher if want_teacher else []}
    _run(*given, dvalue=dvalue.data_ptr(), **to)
    return dstudent, dteacher


def view_cross_entropy_at_once(weight, student, teacher, center, batch, student_temp, teacher_temp, same):
    """The value, and its gradient times ``weight``, while the student's rows are in the cache."""
    student, teacher, weight = [rows(t) for t in student], [rows(t) for t in teacher], weight.contiguous()
    value = torch.empty(batch, dtype=results_dtype(student[0]))
    kept = value.new_empty(2, sum(t.shape[0] for t in (*student, *teacher)))
    dstudent = [torch.empty(t.shape, dtype=t.dtype) for t in student]
    given = student, teacher, center, batch, student_temp, teacher_temp, same, kept
    _run(*given, value=value.data_ptr(), dvalue=weight.data_ptr(), dstudent=dstudent)
    return value, dstudent


def gradient_of_block(dvalue, s, t, center, batch, student_temp, teacher_temp, same, kept, to):
    """The gradient of the student's logits ``s``, all its views one below the other, for the product that is next."""
    dvalue = dvalue.contiguous()
    given = [s], [t], center, batch, student_temp, teacher_temp, same, kept
    _run(*given, dvalue=dvalue.data_ptr(), dstudent=[to], read_next=True)
    return to


def _run(
    student, teacher, center, batch, student_temp, teacher_temp, same, kept,
    value=0, dvalue=0, dstudent=(), dteacher=(), read_next=False,
):  # fmt: skip
    x = student[0]
    views = [sum(t.shape[0] for t in tensors) // batch for tensors in (student, teacher)]
    center = None if center is None else center.contiguous()
    native.C.view_cross_entropy(
        (batch, *views, x.shape[1], DTYPES[x.dtype]),
        (1 / student_temp, 0.0 if teacher_temp is None else 1 / teacher_temp, same),
        _parts(student),
        _parts(teacher),
        (0, 0) if center is None else (center.data_ptr(), center.shape[1] if center.shape[0] > 1 else 0),
        kept[0].data_ptr(),
        kept[1].data_ptr(),
        value,
        dvalue,
        _parts(dstudent),
        _parts(dteacher),
        read_next,
        torch.get_num_threads(),
    )


def _parts(tensors):
    return [(t.data_ptr(), t.shape[0], t.stride(0)) for t in tensors]
