"""The launches for cross-entropies between views, logits given.

The student's views may come as several tensors, each takes a launch of its own; the teacher's few rows are stacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device, rows_of
from ssl_kernels.backends.gpu.launch import cdiv


class Part(NamedTuple):
    """Whole views of the student, and the number of the first."""

    rows: Tensor
    views: int
    first: int


class Partial(NamedTuple):
    """What chunks of the columns gave, ``[chunks, rows of a side, batch]``; ``along`` of every pair of them."""

    tops: Tensor
    sums: Tensor
    teacher_tops: Tensor
    teacher_sums: Tensor
    along: Tensor


class Views:
    """The rows, and what every launch is told of them."""

    def __init__(
        self, student: list[Tensor], teacher: list[Tensor], center: Tensor | None, batch: int, student_temp: float,
        teacher_temp: float | None, same: bool,
    ) -> None:  # fmt: skip
        # a launch takes whole views
        whole = all(t.shape[0] % batch == 0 for t in student)
        self.parts = [rows_of(t) for t in (student if whole else [torch.cat(student)])]
        self.teacher = rows_of(teacher[0] if len(teacher) == 1 else torch.cat(teacher))
        self.center = None if center is None else center.contiguous()
        self.center_stride = 0 if center is None or len(center) == 1 else center.shape[1]
        self.batch, self.width = batch, self.teacher.shape[1]
        self.students, self.teachers = sum(t.shape[0] for t in self.parts) // batch, self.teacher.shape[0] // batch
        self.given, self.same = teacher_temp is None, same
        self.scales = 1 / student_temp, 1.0 if teacher_temp is None else 1 / teacher_temp
        self.dtype = torch.float64 if self.teacher.dtype == torch.float64 else torch.float32

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.teacher.device)

    def launches(self) -> Iterator[Part]:
        first = 0
        for rows in self.parts:
            views = rows.shape[0] // self.batch
            if views:
                yield Part(rows, views, first)
            first += views


class ViewKernels(Protocol):
    def view_columns(self, p: Views) -> int:
        """Columns of a chunk."""
        ...

    def view_sums(self, p: Views, part: Part, sums: Partial) -> None:
        """Of every row over a chunk: the largest logit, the exponentials' sum; of every pair their product."""

    def view_values(self, p: Views, sums: Partial, value: Tensor, kept: Tensor) -> None: ...

    def view_gradients(
        self, p: Views, part: Part, dvalue: Tensor, kept: Tensor, dstudent: Tensor | None, dteacher: Tensor | None
    ) -> None:
        """Adds to ``dteacher``, which is zero before the first launch."""


def view_cross_entropy(kernels: ViewKernels, *call) -> tuple[Tensor, Tensor]:
    p = Views(*call)
    value, kept = p.empty(p.batch), p.empty(2, (p.students + p.teachers) * p.batch)
    chunks = cdiv(p.width, kernels.view_columns(p))
    of_students, of_teachers = (chunks, p.students, p.batch), (chunks, p.teachers, p.batch)
    along = p.empty(chunks, p.students, p.teachers, p.batch)
    sums = Partial(p.empty(*of_students), p.empty(*of_students), p.empty(*of_teachers), p.empty(*of_teachers), along)
    with on_device(p.teacher):
        for part in p.launches():
            kernels.view_sums(p, part, sums)
        kernels.view_values(p, sums, value, kept)
    return value, kept


def view_cross_entropy_backward(
    kernels: ViewKernels, dvalue: Tensor, student: list[Tensor], teacher: list[Tensor], center: Tensor | None,
    batch: int, student_temp: float, teacher_temp: float | None, same: bool, kept: Tensor, want_student: bool,
    want_teacher: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    p = Views(student, teacher, center, batch, student_temp, teacher_temp, same)
    shapes = [t.shape if want_student else (0,) for t in p.parts]
    dparts = [torch.empty(s, dtype=t.dtype, device=t.device) for s, t in zip(shapes, p.parts, strict=True)]
    # launches add to it, one after the other
    dteacher = torch.zeros(p.teacher.shape, dtype=p.dtype, device=p.teacher.device) if want_teacher else None
    dvalue = dvalue.contiguous()
    with on_device(p.teacher):
        outputs = iter([d for d, t in zip(dparts, p.parts, strict=True) if t.shape[0]])
        for part in p.launches():
            d = next(outputs)
            kernels.view_gradients(p, part, dvalue, kept, d if want_student else None, dteacher)
    return _like(dparts, student, want_student), _like([] if dteacher is None else [dteacher], teacher, want_teacher)


def _like(grads: list[Tensor], tensors: list[Tensor], wanted: bool) -> list[Tensor]:
    """The gradients of stacked rows handed back tensor by tensor."""
    if not wanted:
        return [t.new_empty(0) for t in tensors]
    if len(grads) == len(tensors):
        return [d.to(t.dtype) for d, t in zip(grads, tensors, strict=True)]
    return [d.to(t.dtype).clone() for d, t in zip(grads[0].split([len(t) for t in tensors]), tensors, strict=True)]
