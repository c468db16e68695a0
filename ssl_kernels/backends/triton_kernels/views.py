"""Cross-entropies between views: a program takes some columns of one sample, all of the teacher's views and all of the
student's, so that every logit is read once. What a row's columns gave is put together by ``combine``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.gpu.views import Part, Partial, Views
from ssl_kernels.backends.triton_kernels.logits import LOG2E


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


def view_columns(p: Views) -> int:
    """Some 2,048 of the teacher's logits a program, and at least a cache line of each row."""
    return min(max(64, 2048 // _rows(p)), max(16, triton.next_power_of_2(p.width)))


def view_sums(p: Views, part: Part, sums: Partial) -> None:
    forward[_grid(p)](part.rows, p.teacher, p.center, *sums, *_numbers(p, part), **_tile(p), **_block(p))


def view_values(p: Views, sums: Partial, value: Tensor, kept: Tensor) -> None:
    chunks = len(sums.tops)
    combine[(p.batch,)](
        *sums, value, kept[0], kept[1], *p.scales, p.batch, p.students, chunks,
        SAME=p.same, CHUNKS=triton.next_power_of_2(chunks), enable_fp_fusion=True, **_tile(p),
    )  # fmt: skip


def view_gradients(
    p: Views, part: Part, dvalue: Tensor, kept: Tensor, dstudent: Tensor | None, dteacher: Tensor | None
) -> None:
    backward[_grid(p)](
        dvalue, part.rows, p.teacher, p.center, kept[0], kept[1], dstudent, dteacher, *_numbers(p, part),
        SAME=p.same, **_tile(p), **_block(p),
    )  # fmt: skip


def _rows(p: Views) -> int:
    return triton.next_power_of_2(p.teachers)


def _grid(p: Views) -> tuple[int, int]:
    return p.batch, triton.cdiv(p.width, view_columns(p))


def _tile(p: Views) -> dict[str, Any]:
    return {"GIVEN": p.given, "TEACHERS": p.teachers}


def _block(p: Views) -> dict[str, Any]:
    return {"ROWS": _rows(p), "BLOCK": view_columns(p), "num_warps": 4, "enable_fp_fusion": True}


def _numbers(p: Views, part: Part) -> tuple[float | int, ...]:
    strides = part.rows.stride(0), p.teacher.stride(0), p.center_stride
    return *p.scales, *strides, p.batch, part.views, part.first, p.students, p.width
