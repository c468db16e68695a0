r"""DINO's loss (Caron et al. 2021, https://arxiv.org/abs/2104.14294, eq. 2 and algorithm 1), logits given.

The teacher's view ``t`` of an image becomes a distribution over K prototypes, centred and sharpened; every other view
``v`` of the student is to predict it:

.. math:: \mathcal L = \frac1{P B} \sum_{b} \sum_{t} \sum_{v \ne t} H(p_{tb}, q_{vb}), \qquad
          p_{tb} = \mathrm{softmax}\Bigl(\frac{g_{tb} - c}{\tau_t}\Bigr), \quad
          q_{vb} = \mathrm{softmax}\Bigl(\frac{f_{vb}}{\tau_s}\Bigr),

with P pairs of different views. The sum over the pairs is linear in the teacher, so a row of the student takes one
log-softmax and not one a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kernels.losses.center import check_center, mean_logits, move_center_
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import accumulate_dtype, check_not_empty, check_parts, check_rows, view_cross_entropy_sum

__all__ = ["DINOLoss", "dino_loss", "dino_reference"]

NAMES = "student_logits", "teacher_logits"


def dino_loss(
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_gradient: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy between the softmaxes of a teacher's and a student's different views (DINO).

    Every logit is read once forward, read and its gradient written once backward; nothing as large as the logits is
    stored but that gradient.

    Args:
        student_logits: the student's views, a sequence of V tensors ``[B, K]``, or ``[V, B, K]``, or ``[V * B, K]`` as
            a head gives all views one below the other; float32/64, bfloat16 or float16. The first T are the teacher's.
        teacher_logits: the teacher's T views, alike; ``[2 * B, K]`` where they stand one below the other.
        student_temp, teacher_temp: what logits are divided by, above 0.
        center: ``[K]``, or ``[T, K]``, one for each view, taken from the teacher's logits; a constant.
            :func:`sinkhorn_center` makes one too.
        teacher_gradient: let a gradient flow to ``teacher_logits`` too. Then their probabilities are stored.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over samples and pairs, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, no prototypes, no pair of different views, a temperature not
            above 0, a centre of another size, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294, eq. 2. Reference: :func:`dino_reference`. Differentiable
    once; a second derivative raises (the reference has all of them).
    """
    student, teacher, batch, (students, teachers) = rows_of_views(NAMES, student_logits, teacher_logits)
    check_temps(student_temp, teacher_temp)
    share = 1 / (batch * count_pairs(students, teachers))
    weight = student[0].new_full((batch,), share, dtype=accumulate_dtype(student[0].dtype))
    center = center_rows(center, teacher[0].shape[1], teachers, teacher[0])
    if teacher_gradient:
        wide = torch.cat([t.to(accumulate_dtype(t.dtype)) for t in teacher]).view(teachers, batch, -1)
        p = ((wide if center is None else wide - center[:, None]) / teacher_temp).softmax(2)
        teacher, center = [p.flatten(0, 1)], None
        student = [s.to(p.dtype) for s in student]
    else:
        teacher = [t.detach() for t in teacher]
    return view_cross_entropy_sum(
        student, teacher, center, weight, batch=batch, student_temp=student_temp,
        teacher_temp=None if teacher_gradient else teacher_temp, backend=backend,
    )  # fmt: skip


def dino_reference(
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_gradient: bool = False,
) -> Tensor:
    """The same as :func:`dino_loss` as the authors have it: a log-softmax for every pair of views."""
    student, teacher, batch, (students, teachers) = rows_of_views(NAMES, student_logits, teacher_logits)
    check_temps(student_temp, teacher_temp)
    c = center_rows(center, teacher[0].shape[1], teachers, teacher[0])
    f, g = (torch.cat(list(rows)).view(-1, batch, rows[0].shape[1]) for rows in (student, teacher))
    f, g = (x.to(accumulate_dtype(x.dtype)) for x in (f, g if teacher_gradient else g.detach()))
    p = ((g if c is None else g - c[:, None]) / teacher_temp).softmax(2)
    total = f.new_zeros(())
    for t in range(teachers):
        for v in range(students):
            if v != t:
                total = total - (p[t] * (f[v] / student_temp).log_softmax(1)).sum(1).mean()
    return total / count_pairs(students, teachers)


def check_temps(student_temp: float, teacher_temp: float) -> None:
    for name, temp in (("student_temp", student_temp), ("teacher_temp", teacher_temp)):
        if not temp > 0:
            raise ValueError(f"{name}: expected a number above 0, got {temp}")


def rows_of_views(
    names: tuple[str, str], student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], int, tuple[int, int]]:
    """Each side's tensors of rows, one view below the other; how many samples; how many views either side has."""
    teacher, batch, teachers = _rows_of_side(names[1], teacher, None)
    student, batch, students = _rows_of_side(names[0], student, batch)
    for name, rows in ((names[1], teacher), (names[0], student)):
        check_parts(name, rows, f"{names[1]}[0]", teacher[0])
    if count_pairs(students, teachers) == 0:
        raise ValueError(f"{names[0]}: expected a view that the teacher does not have, got one view of each")
    return student, teacher, batch, (students, teachers)


def count_pairs(students: int, teachers: int) -> int:
    """Of different views."""
    return students * teachers - min(students, teachers)


def _rows_of_side(name: str, logits: Tensor | Sequence[Tensor], batch: int | None) -> tuple[list[Tensor], int, int]:
    if isinstance(logits, Tensor) and logits.dim() == 2:
        check_rows(name, logits)
        check_not_empty(name, logits)
        rows = len(logits)
        if batch is None:
            if rows % 2:
                raise ValueError(f"{name}: expected two views one below the other, got {rows} rows")
            return [logits], rows // 2, 2
        if rows % batch:
            raise ValueError(f"{name}: expected whole views of {batch} rows, got {rows} rows")
        return [logits], batch, rows // batch
    if isinstance(logits, Tensor):
        if logits.dim() != 3:
            raise ValueError(f"{name}: expected [V * B, K] or [V, B, K], got shape {tuple(logits.shape)}")
        views = list(logits.unbind(0)) if not _stacked(logits) else [logits.flatten(0, 1)]
        batch, count = batch or logits.shape[1], logits.shape[0]
    else:
        views, count = list(logits), len(logits)
        batch = batch or (len(views[0]) if views else 0)
    if not views or count == 0:
        raise ValueError(f"{name}: expected at least one view, got none")
    for k, view in enumerate(views):
        check_rows(f"{name}[{k}]", view)
        check_not_empty(f"{name}[{k}]", view)
        if len(view) != batch * count // len(views):
            raise ValueError(f"{name}[{k}]: expected {batch} rows, got {len(view)}")
    return views, batch, count


def _stacked(logits: Tensor) -> bool:
    """Whether ``[V, B, K]`` is ``[V * B, K]`` without a copy."""
    return logits.is_contiguous()


def center_rows(center: Tensor | None, k: int, teachers: int, like: Tensor) -> Tensor | None:
    """``[1, K]`` or ``[T, K]``, checked."""
    if center is None:
        return None
    if center.numel() != k and (center.numel() != teachers * k or center.shape[-1] != k):
        expected = f"{k} elements" if teachers == 1 else f"{k} elements, or [{teachers}, {k}]"
        raise ValueError(f"center: expected {expected}, got shape {tuple(center.shape)}")
    return center.detach().reshape(-1, k).to(accumulate_dtype(like.dtype))


class DINOLoss(nn.Module):
    """:func:`dino_loss` with its centre and the teacher's temperature: ``DINOLoss()(teacher_out, student_out)``.

    Args:
        output_dim: K.
        warmup_teacher_temp, warmup_teacher_temp_epochs: the teacher's temperature in epoch 0, from which it goes in
            equal steps, one an epoch, to
        teacher_temp: the one of all later epochs.
        student_temp: as in :func:`dino_loss`.
        center_momentum, center_mode: m and ``"mean"``, as in :class:`Center`.
        backend: as in :func:`dino_loss`.

    Attributes:
        center: ``[1, 1, K]``, part of ``state_dict()``. It moves after the loss is known, towards the mean of the
            teacher's logits over all processes, and not if that is not finite.

    Raises:
        ValueError: as :func:`dino_loss`; neither ``teacher_temp`` nor ``epoch`` in a call.
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_center(output_dim, center_mode, center_momentum)
        for name, temp in (("warmup_teacher_temp", warmup_teacher_temp), ("teacher_temp", teacher_temp)):
            if not temp > 0:
                raise ValueError(f"{name}: expected a number above 0, got {temp}")
        self.warmup_teacher_temp = warmup_teacher_temp
        self.teacher_temp = teacher_temp
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.backend = backend
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def forward(
        self,
        teacher_out: Tensor | Sequence[Tensor],
        student_out: Tensor | Sequence[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        temp = self.temperature_of(epoch) if teacher_temp is None else float(teacher_temp)
        center = self.center.clone()  # of this step: backward comes after the centre has moved
        loss = dino_loss(student_out, teacher_out, self.student_temp, temp, center, backend=self.backend)
        self.update_center(teacher_out)
        return loss

    def temperature_of(self, epoch: int | None) -> float:
        """The teacher's temperature in an epoch."""
        if epoch is None:
            raise ValueError("epoch: expected an epoch, or a teacher_temp, got neither")
        steps = self.warmup_teacher_temp_epochs
        if epoch >= steps:
            return self.teacher_temp
        # epoch 0 has the first of `steps` temperatures, epoch steps - 1 the last
        return self.warmup_teacher_temp + (self.teacher_temp - self.warmup_teacher_temp) * epoch / max(steps - 1, 1)

    def update_center(self, teacher_out: Tensor | Sequence[Tensor]) -> None:
        """Moves the centre towards the mean of the teacher's logits."""
        move_center_(self.center, mean_logits(teacher_out), self.center_momentum)

    def extra_repr(self) -> str:
        return f"student_temp={self.student_temp}, teacher_temp={self.teacher_temp}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """Four views of ``n`` samples over ``d`` prototypes, two of them the teacher's too."""
    return {"student_logits": torch.randn(4 * n, d, **tensor), "teacher_logits": torch.randn(2 * n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    sample = torch.randn(n, d, **tensor)
    student, teacher = (sample.repeat(v, 1) + 0.1 * torch.randn(v * n, d, **tensor) for v in (4, 2))
    return {"student_logits": student, "teacher_logits": teacher}


SPEC = LossSpec(
    name="dino",
    temperatures=(0.1,),  # the student's, unless told otherwise
    fused=dino_loss,
    reference=dino_reference,
    module=DINOLoss,
    inputs=_inputs,
    trained=_trained,
    features=("student_logits",),
    narrowest=2,  # over a single prototype there is nothing to tell apart
    cross_entropy=False,
)
