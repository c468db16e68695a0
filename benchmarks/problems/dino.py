"""DINO's and iBOT's losses: on given logits of ``d`` prototypes; on features ``d`` wide, with the head's last layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem
from ssl_kernels import ibot_patch_reference

PROTOTYPES = 65536


def all_pairs(student_logits: Tensor, teacher_logits: Tensor, center: Tensor | float = 0.0) -> Tensor:
    """As the authors' code has it: a log-softmax of the student for every pair of views."""
    students = (student_logits / 0.1).chunk(2 * len(student_logits) // len(teacher_logits))
    teachers = ((teacher_logits - center) / 0.04).softmax(-1).detach().chunk(2)
    losses = [
        torch.sum(-p * s.log_softmax(-1), dim=-1).mean()
        for t, p in enumerate(teachers)
        for v, s in enumerate(students)
        if v != t
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def stacked(student_logits: Tensor, teacher_logits: Tensor, center: Tensor | float = 0.0) -> Tensor:
    """As the field's library of methods has it: one log-softmax a row, all pairs in one product."""
    batch = len(teacher_logits) // 2
    p = ((teacher_logits - center) / 0.04).softmax(-1).detach().view(2, batch, -1)
    logs = (student_logits / 0.1).log_softmax(-1, dtype=p.dtype).view(-1, batch, p.shape[2])
    loss = -torch.einsum("tbd,sbd->ts", p, logs)
    loss = loss.fill_diagonal_(0)
    return loss.sum() / ((loss.numel() - 2) * batch)


def head_and_all_pairs(
    x_student: Tensor,
    x_teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor | None = None,
    center: Tensor | float = 0.0,
) -> Tensor:
    """The last layer, then the authors' loss; the teacher has a last layer of its own."""
    with torch.no_grad():
        teacher_logits = x_teacher @ (prototypes if teacher_prototypes is None else teacher_prototypes).T
    return all_pairs(x_student @ prototypes.T, teacher_logits, center)


def _features(students: int, n: int, d: int, **tensor: Any) -> dict[str, Any]:
    wide = {**tensor, "dtype": torch.float64 if tensor["dtype"] == torch.float64 else torch.float32}
    rows = {"x_student": students * n, "x_teacher": 2 * n, "prototypes": PROTOTYPES, "teacher_prototypes": PROTOTYPES}
    drawn = {name: F.normalize(torch.randn(count, d, **tensor), dim=1) for name, count in rows.items()}
    return drawn | {"center": 0.1 * torch.randn(1, PROTOTYPES, **wide)}


def _views(students: int, n: int, d: int, **tensor: Any) -> dict[str, Any]:
    wide = {**tensor, "dtype": torch.float64 if tensor["dtype"] == torch.float64 else torch.float32}
    student, teacher = torch.randn(students * n, d, **tensor), torch.randn(2 * n, d, **tensor)
    return {"student_logits": student, "teacher_logits": teacher, "center": 0.1 * torch.randn(1, d, **wide)}


def _patches(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """A third of the 196 patches of as many images as that takes."""
    student, teacher = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    mask = torch.arange(n + -n % 65).view(-1, 65) < n
    return {"student_logits": student, "teacher_logits": teacher, "mask": mask.to(tensor["device"])}


def _dino(students: int) -> Problem:
    return Problem(
        "dino",
        rivals={EAGER: all_pairs, "eager, stacked": stacked},
        sizes=((8, PROTOTYPES), (32, PROTOTYPES)),
        quick=((4, 256),),
        compiled_at=(8, 32),
        inputs=partial(_views, students),
        entries=lambda n: n * (students + 2),  # rows
        gpu=((64, PROTOTYPES),),
        units=(0, 0),
        exponentials=(0, 0),
    )


def _head(students: int) -> Problem:
    return Problem(
        "fused_dino_head",
        rivals={EAGER: head_and_all_pairs},
        sizes=((8, 256), (32, 256)),
        quick=((2, 16),),
        compiled_at=(8, 32),
        inputs=partial(_features, students),
        features=("x_student", "prototypes"),
        entries=lambda n: n * (students + 2) * PROTOTYPES,
        gpu=((64, 256),),
        units=(1, 3.5),
        exponentials=(1, 2),
    )


PROBLEMS = {
    "dino, 2 views": _dino(2),
    "dino, 10 views": _dino(10),
    "dino head, 2 views": _head(2),
    "dino head, 10 views": _head(10),
    "ibot": Problem(
        "ibot_patch",
        rivals={EAGER: ibot_patch_reference},
        sizes=((256, PROTOTYPES), (2000, PROTOTYPES)),
        quick=((65, 256),),
        inputs=_patches,
        entries=lambda n: 2 * n,
        gpu=((2048, PROTOTYPES),),
        units=(0, 0),
        exponentials=(0, 0),
    ),
}
