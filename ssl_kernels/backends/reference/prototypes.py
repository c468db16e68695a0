"""Cross-entropies of products with prototypes, with all logits in memory."""

from __future__ import annotations

import torch

from ssl_kernels.backends.reference.views import view_cross_entropy, view_cross_entropy_backward


def _logits(x, prototypes):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype) @ prototypes.to(dtype).T


def prototype_cross_entropy(student, teacher, prototypes, teacher_prototypes, *rest):
    return view_cross_entropy([_logits(student, prototypes)], [_logits(teacher, teacher_prototypes)], *rest)


def prototype_cross_entropy_backward(
    dvalue, student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same,
    kept, want_student, want_prototypes,
):  # fmt: skip
    logits = [_logits(student, prototypes)], [_logits(teacher, teacher_prototypes)]
    given = *logits, center, batch, student_temp, teacher_temp, same, kept
    (ds,), _ = view_cross_entropy_backward(dvalue, *given, want_student=True, want_teacher=False)
    dstudent = (ds @ prototypes.to(ds.dtype)).to(student.dtype) if want_student else student.new_empty(0)
    dprototypes = (ds.T @ student.to(ds.dtype)).to(prototypes.dtype) if want_prototypes else prototypes.new_empty(0)
    return dstudent, dprototypes


def prototype_lse(x, prototypes, bias, multiplier, dim):
    s = multiplier * _logits(x, prototypes)
    return (s if bias is None else s + (bias if dim == 1 else bias[:, None])).logsumexp(dim)
