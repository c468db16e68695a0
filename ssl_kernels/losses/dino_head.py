r"""DINO's and iBOT's losses together with the last layer of the head: the logits are never stored.

With bottleneck features ``x`` and prototypes ``W`` (weight-normed, one a row) the logits are :math:`x W^\top`, a
similarity matrix as any other here: the losses of ``dino.py`` and ``ibot.py`` are sweeps over blocks of prototypes, and
the centre's mean over the rows is :math:`\overline{x} W^\top`. Caron et al. 2021, https://arxiv.org/abs/2104.14294;
Zhou et al. 2021, https://arxiv.org/abs/2111.07832; at 131,072 prototypes in DINOv2, https://arxiv.org/abs/2304.07193.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels.losses.center import move_center_
from ssl_kernels.losses.dino import DINOLoss, center_rows, check_temps, count_pairs, dino_reference, rows_of_views
from ssl_kernels.losses.ibot import IBOTPatchLoss, check_patches, ibot_patch_reference, patch_weights
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import check_not_empty, check_rows, prototype_cross_entropy

__all__ = [
    "FusedDINOHeadLoss",
    "FusedIBOTHeadLoss",
    "fused_dino_head_loss",
    "fused_dino_head_reference",
    "fused_ibot_head_loss",
    "fused_ibot_head_reference",
]


def fused_dino_head_loss(
    x_student: Tensor | Sequence[Tensor],
    x_teacher: Tensor | Sequence[Tensor],
    prototypes: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_prototypes: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r""":func:`dino_loss` of the logits ``x @ prototypes.T``, O(rows D + K D) memory.

    Args:
        x_student, x_teacher: bottleneck features of the views, in the forms :func:`dino_loss` takes logits in, D wide;
            float32/64, bfloat16 or float16; taken as they are (heads normalise them).
        prototypes: the last layer's weight, ``[K, D]``, alike; taken as it is.
        student_temp, teacher_temp: what logits are divided by, above 0.
        center: ``[K]``, or ``[T, K]``, one for each view, taken from the teacher's logits; a constant.
            :func:`fused_sinkhorn_center` makes one too.
        teacher_prototypes: the teacher's last layer, ``[K, D]``; default: the student's.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over samples and pairs, a float32 scalar (float64 for float64). ``x_student`` and ``prototypes`` get
        gradients, the teacher is detached.

    Raises:
        ValueError: shapes, dtypes or devices disagree, K or D of zero, no pair of different views, a temperature not
            above 0, a centre of another size, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294, eq. 2. Reference: :func:`fused_dino_head_reference`.
    """
    student, teacher, batch, (students, teachers) = rows_of_views(("x_student", "x_teacher"), x_student, x_teacher)
    check_temps(student_temp, teacher_temp)
    _check_prototypes(prototypes, teacher_prototypes)
    xs, xt = (rows[0] if len(rows) == 1 else torch.cat(rows) for rows in (student, teacher))
    w = prototypes if teacher_prototypes is None else teacher_prototypes
    value = prototype_cross_entropy(
        xs, xt.detach(), prototypes, w.detach(), center_rows(center, len(prototypes), teachers, prototypes),
        batch=batch, student_temp=student_temp, teacher_temp=teacher_temp, backend=backend,
    )  # fmt: skip
    return value.sum() / (batch * count_pairs(students, teachers))


def fused_ibot_head_loss(
    x_student: Tensor,
    x_teacher: Tensor,
    prototypes: Tensor,
    mask: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_prototypes: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r""":func:`ibot_patch_loss` of the logits ``x @ prototypes.T``, O(M D + K D) memory.

    Args:
        x_student, x_teacher: bottleneck features of the M masked patches, image by image, ``[M, D]``.
        prototypes, teacher_prototypes: as in :func:`fused_dino_head_loss`.
        mask: which patches they are, bool ``[B, ...]`` with M of its elements true.
        student_temp, teacher_temp, center, backend: as in :func:`ibot_patch_loss`.

    Returns:
        The mean over the images of the means over their patches, as :func:`ibot_patch_loss`.

    Raises:
        ValueError, TypeError: as :func:`fused_dino_head_loss` and :func:`ibot_patch_loss`.

    Zhou et al. 2021, https://arxiv.org/abs/2111.07832, eq. 2. Reference: :func:`fused_ibot_head_reference`.
    """
    check_patches(x_student, x_teacher, ("x_student", "x_teacher"))
    check_temps(student_temp, teacher_temp)
    _check_prototypes(prototypes, teacher_prototypes)
    weight = patch_weights(mask, x_student)
    w = prototypes if teacher_prototypes is None else teacher_prototypes
    value = prototype_cross_entropy(
        x_student, x_teacher.detach(), prototypes, w.detach(), center_rows(center, len(prototypes), 1, prototypes),
        batch=len(x_student), student_temp=student_temp, teacher_temp=teacher_temp, same=True, backend=backend,
    )  # fmt: skip
    return (weight.to(value.dtype) * value).sum()


def _check_prototypes(prototypes: Tensor, teacher_prototypes: Tensor | None) -> None:
    for name, t in (("prototypes", prototypes), ("teacher_prototypes", teacher_prototypes)):
        if t is not None:
            check_rows(name, t)
            check_not_empty(name, t)


def _logits(x: Tensor | Sequence[Tensor], prototypes: Tensor) -> Tensor | list[Tensor]:
    return x @ prototypes.T if isinstance(x, Tensor) else [view @ prototypes.T for view in x]


def fused_dino_head_reference(
    x_student: Tensor | Sequence[Tensor],
    x_teacher: Tensor | Sequence[Tensor],
    prototypes: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_prototypes: Tensor | None = None,
) -> Tensor:
    """The same as :func:`fused_dino_head_loss`: the last layer, and :func:`dino_reference` of its logits."""
    with torch.no_grad():
        teacher = _logits(x_teacher, prototypes if teacher_prototypes is None else teacher_prototypes)
    return dino_reference(_logits(x_student, prototypes), teacher, student_temp, teacher_temp, center)


def fused_ibot_head_reference(
    x_student: Tensor,
    x_teacher: Tensor,
    prototypes: Tensor,
    mask: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    teacher_prototypes: Tensor | None = None,
) -> Tensor:
    """The same as :func:`fused_ibot_head_loss`: the last layer, and :func:`ibot_patch_reference` of its logits."""
    with torch.no_grad():
        teacher = x_teacher @ (prototypes if teacher_prototypes is None else teacher_prototypes).T
    return ibot_patch_reference(x_student @ prototypes.T, teacher, mask, student_temp, teacher_temp, center)


@torch.no_grad()
def mean_logits_of(x_teacher: Tensor | Sequence[Tensor], prototypes: Tensor) -> Tensor:
    """The mean of the logits over all rows: that of the features times the prototypes."""
    rows = x_teacher if isinstance(x_teacher, Tensor) else torch.cat(list(x_teacher))
    return prototypes.float() @ rows.flatten(0, -2).mean(0, dtype=torch.float32)


class FusedDINOHeadLoss(DINOLoss):
    """:class:`DINOLoss` of features and prototypes: ``FusedDINOHeadLoss()(x_teacher, x_student, prototypes)``.

    Args: as :class:`DINOLoss`. Its centre moves towards ``mean(x_teacher) @ teacher_prototypes.T``.
    """

    def forward(  # type: ignore[override]
        self,
        x_teacher: Tensor | Sequence[Tensor],
        x_student: Tensor | Sequence[Tensor],
        prototypes: Tensor,
        teacher_temp: float | None = None,
        epoch: int | None = None,
        teacher_prototypes: Tensor | None = None,
    ) -> Tensor:
        temp = self.temperature_of(epoch) if teacher_temp is None else float(teacher_temp)
        center = self.center.clone()  # of this step: backward comes after the centre has moved
        loss = fused_dino_head_loss(
            x_student, x_teacher, prototypes, self.student_temp, temp, center,
            teacher_prototypes=teacher_prototypes, backend=self.backend,
        )  # fmt: skip
        w = prototypes if teacher_prototypes is None else teacher_prototypes
        move_center_(self.center, mean_logits_of(x_teacher, w), self.center_momentum)
        return loss


class FusedIBOTHeadLoss(IBOTPatchLoss):
    """:class:`IBOTPatchLoss` of features: ``FusedIBOTHeadLoss()(x_teacher, x_student, prototypes, mask)``.

    Args: as :class:`IBOTPatchLoss`. Its centre moves towards ``mean(x_teacher) @ teacher_prototypes.T``.
    """

    def forward(  # type: ignore[override]
        self,
        x_teacher: Tensor,
        x_student: Tensor,
        prototypes: Tensor,
        mask: Tensor,
        teacher_temp: float | None = None,
        teacher_prototypes: Tensor | None = None,
    ) -> Tensor:
        temp = self.teacher_temp if teacher_temp is None else float(teacher_temp)
        center = self.center.value.clone()  # of this step: backward comes after the centre has moved
        loss = fused_ibot_head_loss(
            x_student, x_teacher, prototypes, mask, self.student_temp, temp, center,
            teacher_prototypes=teacher_prototypes, backend=self.backend,
        )  # fmt: skip
        w = prototypes if teacher_prototypes is None else teacher_prototypes
        move_center_(self.center.value, mean_logits_of(x_teacher, w), self.center.momentum)
        return loss


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """Four views of ``n`` samples, two of them the teacher's too, and a few more prototypes than rows."""
    student, teacher, w = (F.normalize(torch.randn(k, d, **tensor), dim=1) for k in (4 * n, 2 * n, 3 * n + 2))
    return {"x_student": student, "x_teacher": teacher, "prototypes": w}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    drawn = _inputs(n, d, **tensor)
    sample = drawn["x_teacher"][:n]
    student, teacher = (sample.repeat(v, 1) + 0.1 * torch.randn(v * n, d, **tensor) for v in (4, 2))
    return drawn | {"x_student": student, "x_teacher": teacher}


SPEC = LossSpec(
    name="fused_dino_head",
    temperatures=(0.1,),  # the student's, unless told otherwise
    fused=fused_dino_head_loss,
    reference=fused_dino_head_reference,
    module=FusedDINOHeadLoss,
    inputs=_inputs,
    trained=_trained,
    features=("x_student", "prototypes"),
    cross_entropy=False,
)
