"""Cross-entropies between views: a program takes some columns of one sample, all of the teacher's views and all of the
student's, so that every logit is read once. What a row's columns gave is put together by ``combine``.

The student's views may come as several tensors, each takes a launch of its own; the teacher's few rows are stacked.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.triton_kernels.logits import LOG2E
from ssl_kernels.backends.triton_kernels.streams import on_device, rows_of


@triton.jit
def in_base_2(scale, DTYPE: tl.constexpr):
    return tl.full([], scale * LOG2E, DTYPE)


@triton.jit
def load_teacher(
    teacher, center, stride, center_stride, b, batch, t, k, width, DTYPE: tl.constexpr, TEACHERS: tl.constexpr
):
    """Logits less the centre of all views of a sample, -inf beyond; nothing is taken from probabilities."""
    inside = (t < TEACHERS)[:, None] & (k < width)[None, :]
    row = t * batch + b
    x = tl.load(teacher + (row[:, None] * stride + k[None, :]), mask=inside, other=float("-inf")).to(DTYPE)
    if center is not None:
        at = t[:, None] * center_stride + k[None, :]
        x = x - tl.load(center + at, mask=inside, other=0.0)
    return x


@triton.jit(do_not_specialize=["batch", "views", "first_view"])
def forward(
    student, teacher, center, student_tops, student_sums, teacher_tops, teacher_sums, along,
    student_scale: tl.float64, teacher_scale: tl.float64, student_stride, teacher_stride, center_stride,
    batch, views, first_view, students, width,
    GIVEN: tl.constexpr, TEACHERS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every row over these columns: the largest logit, the exponentials' sum relative to it; of every pair the
    teacher's exponentials (or probabilities) times what the student's logits are below their largest."""
    DTYPE: tl.constexpr = student_tops.dtype.element_ty
    b, c = tl.program_id(0), tl.program_id(1)
    k = c * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, ROWS).to(tl.int64)
    inside = k < width
    x = load_teacher(teacher, center, teacher_stride, center_stride, b, batch, t, k, width, DTYPE, TEACHERS)
    if GIVEN:
        top = tl.zeros([ROWS], DTYPE)
        e = tl.where(x == float("-inf"), 0.0, x)
    else:
        top = tl.where(t < TEACHERS, tl.max(x, 1), 0.0)
        e = tl.math.exp2((x - top[:, None]) * in_base_2(teacher_scale, DTYPE))
    # [chunks, views, batch], the batch fastest
    at = (c.to(tl.int64) * TEACHERS + t) * batch + b
    tl.store(teacher_tops + at, top, mask=t < TEACHERS)
    tl.store(teacher_sums + at, tl.sum(e, 1), mask=t < TEACHERS)
    scale = in_base_2(student_scale, DTYPE)
    for v in range(views):
        row = (v * batch + b).to(tl.int64)
        s = tl.load(student + (row * student_stride + k), mask=inside, other=float("-inf")).to(DTYPE)
        top_v = tl.max(s, 0)
        below = tl.where(inside, s - top_v, 0.0)
        e_v = tl.where(inside, tl.math.exp2(below * scale), 0.0)
        view = c.to(tl.int64) * students + first_view + v
        tl.store(student_tops + (view * batch + b), top_v)
        tl.store(student_sums + (view * batch + b), tl.sum(e_v, 0))
        pair = (view * TEACHERS + t) * batch + b
        tl.store(along + pair, tl.sum(e * below[None, :], 1), mask=t < TEACHERS)


@triton.jit
def put_together(tops, sums, view, views, b, batch, chunk, chunks, scale):
    """A row's largest logit and sum of exponentials; what each chunk's sum is to be multiplied with, and that sum."""
    at = (chunk.to(tl.int64) * views + view) * batch + b
    there = chunk < chunks
    highest = tl.load(tops + at, mask=there, other=float("-inf"))
    top = tl.max(highest, 0)
    lift = tl.where(there, tl.math.exp2((highest - top) * scale), 0.0)
    each = tl.load(sums + at, mask=there, other=0.0)
    return top, tl.sum(each * lift, 0), lift, each


@triton.jit(do_not_specialize=["batch", "students"])
def combine(
    student_tops, student_sums, teacher_tops, teacher_sums, along, value, tops, shares,
    student_scale: tl.float64, teacher_scale: tl.float64, batch, students, chunks,
    SAME: tl.constexpr, GIVEN: tl.constexpr, TEACHERS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One sample: its value, and what is kept of its rows; of given probabilities their sum."""
    DTYPE: tl.constexpr = value.dtype.element_ty
    b = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    there = chunk < chunks
    scale = tl.full([], student_scale, DTYPE)
    scale_t = in_base_2(teacher_scale, DTYPE)
    result = tl.zeros([], DTYPE)
    for t in range(TEACHERS):
        top, total, _lift, _sums = put_together(
            teacher_tops, teacher_sums, t, TEACHERS, b, batch, chunk, chunks, scale_t
        )
        tl.store(tops + (students + t) * batch + b, top)
        tl.store(shares + (students + t) * batch + b, total if GIVEN else 1.0 / total)
    for v in range(students):
        top_v, total_v, _lift_v, _sums_v = put_together(
            student_tops, student_sums, v, students, b, batch, chunk, chunks, scale * LOG2E
        )
        tl.store(tops + v * batch + b, top_v)
        tl.store(shares + v * batch + b, 1.0 / total_v)
        at = (chunk.to(tl.int64) * students + v) * batch + b
        lower = tl.where(there, tl.load(student_tops + at, mask=there, other=0.0) - top_v, 0.0)
        for t in range(TEACHERS):
            _top, mass, lift, sums = put_together(
                teacher_tops, teacher_sums, t, TEACHERS, b, batch, chunk, chunks, scale_t
            )
            pair = ((chunk.to(tl.int64) * students + v) * TEACHERS + t) * batch + b
            products = tl.load(along + pair, mask=there, other=0.0)
            cross = tl.sum(lift * (products + sums * lower), 0)
            if GIVEN:
                h = mass * tl.log(total_v) - scale * cross
            else:
                h = tl.log(total_v) - scale * cross / mass
            if SAME or t != v:
                result += h
    tl.store(value + b, result)


@triton.jit(do_not_specialize=["batch", "views", "first_view"])
def backward(
    dvalue, student, teacher, center, tops, shares, dstudent, dteacher,
    student_scale: tl.float64, teacher_scale: tl.float64, student_stride, teacher_stride, center_stride,
    batch, views, first_view, students, width,
    SAME: tl.constexpr, GIVEN: tl.constexpr, TEACHERS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = tops.dtype.element_ty
    b = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, ROWS).to(tl.int64)
    inside = k < width
    there = t < TEACHERS
    x = load_teacher(teacher, center, teacher_stride, center_stride, b, batch, t, k, width, DTYPE, TEACHERS)
    kept = (students + t) * batch + b
    share = tl.load(shares + kept, mask=there, other=0.0)
    if GIVEN:
        p = tl.where(x == float("-inf"), 0.0, x)
        mass = share
    else:
        top = tl.load(tops + kept, mask=there, other=0.0)
        p = tl.math.exp2((x - top[:, None]) * in_base_2(teacher_scale, DTYPE)) * share[:, None]
        mass = tl.where(there, 1.0, 0.0).to(DTYPE)
    scale = tl.full([], student_scale, DTYPE)
    g = tl.load(dvalue + b)
    logs = tl.zeros([ROWS, BLOCK], DTYPE)
    for v in range(views):
        row = (v * batch + b).to(tl.int64)
        s = tl.load(student + (row * student_stride + k), mask=inside, other=0.0).to(DTYPE)
        at = (first_view + v) * batch + b
        below = (s - tl.load(tops + at)) * scale
        share_v = tl.load(shares + at)
        if SAME:
            paired = there
        else:
            paired = there & (t != first_view + v)
        if dstudent is not None:
            target = tl.sum(tl.where(paired[:, None], p, 0.0), 0)
            mine = tl.sum(tl.where(paired, mass, 0.0), 0) * share_v
            d = g * scale * (mine * tl.math.exp2(below * LOG2E) - target)
            tl.store(dstudent + (row * width + k), d.to(dstudent.dtype.element_ty), mask=inside)
        if dteacher is not None:
            logs += tl.where(paired[:, None], below[None, :] + tl.log(share_v), 0.0)
    if dteacher is not None:
        to = dteacher + ((t * batch + b)[:, None] * width + k[None, :])
        there = there[:, None] & inside[None, :]
        tl.store(to, tl.load(to, mask=there, other=0.0) - g * logs, mask=there)


class _Problem:
    """The rows, and what every launch is told of them."""

    def __init__(self, student, teacher, center, batch, student_temp, teacher_temp) -> None:
        # a launch takes whole views
        whole = all(t.shape[0] % batch == 0 for t in student)
        self.parts = [rows_of(t) for t in (student if whole else [torch.cat(student)])]
        self.teacher = rows_of(teacher[0] if len(teacher) == 1 else torch.cat(teacher))
        self.center = None if center is None else center.contiguous()
        self.batch, self.width = batch, self.teacher.shape[1]
        self.students, self.teachers = sum(t.shape[0] for t in self.parts) // batch, self.teacher.shape[0] // batch
        rows = triton.next_power_of_2(self.teachers)
        # some 2,048 of the teacher's logits a program, and at least a cache line of each row
        block = min(max(64, 2048 // rows), max(16, triton.next_power_of_2(self.width)))
        self.chunks = triton.cdiv(self.width, block)
        self.given = teacher_temp is None
        self.scales = 1 / student_temp, 1.0 if teacher_temp is None else 1 / teacher_temp
        self.tile: dict[str, Any] = {"GIVEN": self.given, "TEACHERS": self.teachers}
        self.block: dict[str, Any] = {"ROWS": rows, "BLOCK": block, "num_warps": 4, "enable_fp_fusion": True}
        self.grid = batch, self.chunks
        self.dtype = torch.float64 if self.teacher.dtype == torch.float64 else torch.float32

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.teacher.device)

    def launches(self):
        """Part, its strides and the teacher's and the centre's, and which views they are."""
        first, stride = 0, 0 if self.center is None or len(self.center) == 1 else self.width
        for part in self.parts:
            views = part.shape[0] // self.batch
            if views:
                strides = part.stride(0), self.teacher.stride(0), stride
                yield part, (*self.scales, *strides, self.batch, views, first, self.students, self.width)
            first += views


def view_cross_entropy(
    student: list[Tensor], teacher: list[Tensor], center: Tensor | None, batch: int, student_temp: float,
    teacher_temp: float | None, same: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    p = _Problem(student, teacher, center, batch, student_temp, teacher_temp)
    value, kept = p.empty(batch), p.empty(2, (p.students + p.teachers) * batch)
    tops, sums = (p.empty(p.chunks, p.students, batch) for _ in range(2))
    teacher_tops, teacher_sums = (p.empty(p.chunks, p.teachers, batch) for _ in range(2))
    along = p.empty(p.chunks, p.students, p.teachers, batch)
    with on_device(p.teacher):
        for part, rest in p.launches():
            partial = tops, sums, teacher_tops, teacher_sums, along
            forward[p.grid](part, p.teacher, p.center, *partial, *rest, **p.tile, **p.block)
        combine[(batch,)](
            tops, sums, teacher_tops, teacher_sums, along, value, kept[0], kept[1], *p.scales, batch, p.students,
            p.chunks, SAME=same, CHUNKS=triton.next_power_of_2(p.chunks), enable_fp_fusion=True, **p.tile,
        )  # fmt: skip
    return value, kept


def view_cross_entropy_backward(
    dvalue: Tensor, student: list[Tensor], teacher: list[Tensor], center: Tensor | None, batch: int,
    student_temp: float, teacher_temp: float | None, same: bool, kept: Tensor, want_student: bool, want_teacher: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    p = _Problem(student, teacher, center, batch, student_temp, teacher_temp)
    shapes = [t.shape if want_student else (0,) for t in p.parts]
    dparts = [torch.empty(s, dtype=t.dtype, device=t.device) for s, t in zip(shapes, p.parts, strict=True)]
    # launches add to it, one after the other
    dteacher = torch.zeros(p.teacher.shape, dtype=p.dtype, device=p.teacher.device) if want_teacher else None
    dvalue = dvalue.contiguous()
    with on_device(p.teacher):
        outputs = iter([d for d, t in zip(dparts, p.parts, strict=True) if t.shape[0]])
        for part, rest in p.launches():
            d = next(outputs)
            backward[p.grid](
                dvalue, part, p.teacher, p.center, kept[0], kept[1], d if want_student else None, dteacher, *rest,
                SAME=same, **p.tile, **p.block,
            )  # fmt: skip
    return _like(dparts, student, want_student), _like([] if dteacher is None else [dteacher], teacher, want_teacher)


def _like(grads: list[Tensor], tensors: list[Tensor], wanted: bool) -> list[Tensor]:
    """The gradients of stacked rows handed back tensor by tensor."""
    if not wanted:
        return [t.new_empty(0) for t in tensors]
    if len(grads) == len(tensors):
        return [d.to(t.dtype) for d, t in zip(grads, tensors, strict=True)]
    return [d.to(t.dtype).clone() for d, t in zip(grads[0].split([len(t) for t in tensors]), tensors, strict=True)]
