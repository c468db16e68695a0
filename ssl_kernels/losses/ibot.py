r"""iBOT's loss on masked patches (Zhou et al. 2021, https://arxiv.org/abs/2111.07832, eq. 2), logits given.

The student sees an image with patches masked out and is to predict the distribution over prototypes that the teacher,
who sees all of it, gives to each of them. With :math:`m_b` masked patches in image ``b``:

.. math:: \mathcal L = \frac1B \sum_b \frac1{m_b} \sum_{i \in b} H\Bigl(
          \mathrm{softmax}\bigl(\tfrac{g_i - c}{\tau_t}\bigr), \mathrm{softmax}\bigl(\tfrac{f_i}{\tau_s}\bigr)\Bigr).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kernels.losses.center import Center
from ssl_kernels.losses.dino import center_rows, check_temps
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import accumulate_dtype, check_alike, check_not_empty, check_rows, view_cross_entropy_sum

__all__ = ["IBOTPatchLoss", "ibot_patch_loss", "ibot_patch_reference"]


def ibot_patch_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy between a teacher's and a student's softmaxes at the masked patches (iBOT).

    Args:
        student_logits: of the M masked patches, image by image, ``[M, K]``, float32/64, bfloat16 or float16.
        teacher_logits: of the same patches, alike; detached here.
        mask: which patches they are, bool ``[B, ...]`` with M of its elements true. An image without any counts as one
            whose loss is 0.
        student_temp, teacher_temp: what logits are divided by, above 0.
        center: ``[K]``, taken from the teacher's logits; a constant. :func:`sinkhorn_center` makes one too.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the images of the means over their patches, a float32 scalar (float64 for float64); NaN on a GPU
        where the mask has not M elements, as counting them would stop the host.

    Raises:
        ValueError: shapes, dtypes or devices disagree, a mask that has not M elements (on a CPU), no prototypes, a
            temperature not above 0, a centre of another size, unknown or unavailable backend.
        TypeError: not floating-point tensors, a mask that is not bool.

    Zhou et al. 2021, https://arxiv.org/abs/2111.07832, eq. 2. Reference: :func:`ibot_patch_reference`.
    """
    check_patches(student_logits, teacher_logits)
    weight = patch_weights(mask, student_logits)
    check_temps(student_temp, teacher_temp)
    center = center_rows(center, student_logits.shape[1], 1, student_logits)
    return view_cross_entropy_sum(
        [student_logits], [teacher_logits.detach()], center, weight, batch=len(student_logits),
        student_temp=student_temp, teacher_temp=teacher_temp, same=True, backend=backend,
    )  # fmt: skip


def ibot_patch_reference(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
) -> Tensor:
    """The same as :func:`ibot_patch_loss` as the authors have it, with every softmax in memory."""
    check_patches(student_logits, teacher_logits)
    check_temps(student_temp, teacher_temp)
    f, g = (t.to(accumulate_dtype(t.dtype)) for t in (student_logits, teacher_logits.detach()))
    c = center_rows(center, f.shape[1], 1, f)
    p = ((g if c is None else g - c) / teacher_temp).softmax(1)
    loss = -(p * (f / student_temp).log_softmax(1)).sum(1)
    return (loss * patch_weights(mask, student_logits)).sum()


def check_patches(
    student: Tensor, teacher: Tensor, names: Sequence[str] = ("student_logits", "teacher_logits")
) -> None:
    for name, t in zip(names, (student, teacher), strict=True):
        check_rows(name, t)
        check_not_empty(name, t)
    if teacher.shape != student.shape:
        expected = f"shape {tuple(student.shape)} as {names[0]}"
        raise ValueError(f"{names[1]}: expected {expected}, got {tuple(teacher.shape)}")
    check_alike(names[1], teacher, names[0], student)


def patch_weights(mask: Tensor, patches: Tensor) -> Tensor:
    """One over the number of masked patches of its image and over the number of images, for each of ``patches``."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.dim() < 2:
        raise ValueError(f"mask: expected [B, ...], got shape {tuple(mask.shape)}")
    if mask.device != patches.device:
        raise ValueError(f"mask: expected device {patches.device} as student_logits, got {mask.device}")
    rows = len(patches)
    counts = mask.flatten(1).sum(1)
    ends = counts.cumsum(0)
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and ends[-1] != rows:
        raise ValueError(f"mask: expected {rows} elements that are true, as there are patches, got {int(ends[-1])}")
    image = torch.searchsorted(ends, torch.arange(rows, device=mask.device), right=True).clamp(max=len(mask) - 1)
    weight = 1 / (counts[image] * len(mask)).to(accumulate_dtype(patches.dtype))
    return torch.where(ends[-1] == rows, weight, torch.nan)


class IBOTPatchLoss(nn.Module):
    """:func:`ibot_patch_loss` with its centre: ``IBOTPatchLoss()(teacher_out, student_out, mask)``.

    Args:
        output_dim: K.
        teacher_temp, student_temp: as in :func:`ibot_patch_loss`.
        center_mode, center_momentum: as in :class:`Center`.
        backend: as in :func:`ibot_patch_loss`.

    Attributes:
        center: a :class:`Center` of ``[1, K]``. It moves after the loss is known, towards the mean of the teacher's
            logits over all processes, and not if that is not finite.
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: str = "mean",
        center_momentum: float = 0.9,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_temps(student_temp, teacher_temp)
        self.teacher_temp, self.student_temp = teacher_temp, student_temp
        self.center = Center((1, output_dim), center_mode, center_momentum)
        self.backend = backend

    def forward(
        self, teacher_out: Tensor, student_out: Tensor, mask: Tensor, teacher_temp: float | None = None
    ) -> Tensor:
        temp = self.teacher_temp if teacher_temp is None else float(teacher_temp)
        center = self.center.value.clone()  # of this step: backward comes after the centre has moved
        loss = ibot_patch_loss(student_out, teacher_out, mask, self.student_temp, temp, center, backend=self.backend)
        self.center.update(teacher_out)
        return loss

    def extra_repr(self) -> str:
        return f"student_temp={self.student_temp}, teacher_temp={self.teacher_temp}"


def _mask(n: int, d: int, **tensor: Any) -> Tensor:
    """Of images of four patches, 1, 2, 3, 1, ... of them masked, until there are ``n``."""
    counts: list[int] = []
    left = n
    while left:
        counts.append(min(left, 1 + len(counts) % 3))
        left -= counts[-1]
    return torch.arange(4, device=tensor["device"]) < torch.tensor(counts, device=tensor["device"])[:, None]


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    student, teacher = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    return {"student_logits": student, "teacher_logits": teacher, "mask": _mask(n, d, **tensor)}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    drawn = _inputs(n, d, **tensor)
    return drawn | {"student_logits": drawn["teacher_logits"] + 0.1 * drawn["student_logits"]}


SPEC = LossSpec(
    name="ibot_patch",
    temperatures=(0.1,),  # the student's, unless told otherwise
    fused=ibot_patch_loss,
    reference=ibot_patch_reference,
    module=IBOTPatchLoss,
    inputs=_inputs,
    trained=_trained,
    features=("student_logits",),
    narrowest=2,
    cross_entropy=False,
)
