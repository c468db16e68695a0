"""Cross-entropies between views, with all probabilities in memory."""

from __future__ import annotations

import torch


def _views(tensors, batch):
    """``[views, batch, K]``, in float32 at least."""
    x = torch.cat(list(tensors))
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).view(-1, batch, x.shape[1])


def _softmax(s, temp):
    """What is kept of every row (its largest logit, one over the sum of the exponentials), and the probabilities."""
    top = s.amax(2, keepdim=True)
    e = ((s - top) / temp).exp()
    share = 1 / e.sum(2, keepdim=True)
    return torch.stack([top.flatten(), share.flatten()]), e * share


def _targets(teacher, center, batch, teacher_temp, students, same):
    """What is kept of the teacher; for every view of the student the sum of the probabilities it is compared with."""
    b = _views(teacher, batch)
    if teacher_temp is None:
        kept, p = b.new_zeros(2, b.shape[0] * batch), b
    else:
        kept, p = _softmax(b if center is None else b - center[:, None], teacher_temp)
    pairs = _pairs(students, len(p), same, p)
    return kept, torch.einsum("vt,tbk->vbk", pairs, p), pairs


def _pairs(students, teachers, same, like):
    pairs = like.new_ones(students, teachers)
    return pairs if same else pairs.fill_diagonal_(0)


def view_cross_entropy(student, teacher, center, batch, student_temp, teacher_temp, same):
    s = _views(student, batch)
    kept, targets, _ = _targets(teacher, center, batch, teacher_temp, len(s), same)
    value = -(targets * (s / student_temp).log_softmax(2)).sum((0, 2))
    return value, torch.cat([_softmax(s, student_temp)[0], kept], 1)


def view_cross_entropy_backward(
    dvalue, student, teacher, center, batch, student_temp, teacher_temp, same, kept, want_student, want_teacher
):
    s = _views(student, batch)
    _, targets, pairs = _targets(teacher, center, batch, teacher_temp, len(s), same)
    ds = dt = None
    if want_student:
        mass = targets.sum(2, keepdim=True) if teacher_temp is None else pairs.sum(1)[:, None, None]
        ds = dvalue[:, None] / student_temp * (mass * (s / student_temp).softmax(2) - targets)
    if want_teacher:
        logs = (s / student_temp).log_softmax(2)
        dt = -dvalue[:, None] * torch.einsum("vt,vbk->tbk", pairs, logs)
    return _parts(ds, student), _parts(dt, teacher)


def _parts(d, tensors):
    if d is None:
        return [t.new_empty(0) for t in tensors]
    return [p.clone() for p in d.flatten(0, 1).to(tensors[0].dtype).split([len(t) for t in tensors])]
