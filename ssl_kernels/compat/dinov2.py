"""DINOv2's losses: ``from ssl_kernels.compat.dinov2 import DINOLoss, iBOTPatchLoss, KoLeoLoss``.

Constructors, calls and attributes as in its ``dinov2.loss``, sums where it sums. The teacher's probabilities are
tensors there, and so they are here. Unlike there, no process group is needed, no argument is written to, temperatures
may be as low as one likes, and the centre takes no part in a step that is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_kernels import losses
from ssl_kernels.losses.center import mean_logits, move_center_
from ssl_kernels.losses.dino import check_temps
from ssl_kernels.ops import view_cross_entropy

__all__ = ["DINOLoss", "KoLeoLoss", "iBOTPatchLoss"]


class _Teacher(nn.Module):
    """The centre, which moves when it is next asked for, and the teacher's two ways to be sharpened."""

    center: Tensor

    def __init__(self, shape: tuple[int, ...], student_temp: float, center_momentum: float) -> None:
        super().__init__()
        check_temps(student_temp, student_temp)
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(shape))
        self.updated = True
        self._mean: Tensor | None = None

    @torch.no_grad()
    def softmax_center_teacher(self, teacher_output: Tensor, teacher_temp: float) -> Tensor:
        """``softmax((teacher_output - center) / teacher_temp)``, float32."""
        self.apply_center_update()
        return ((teacher_output.float() - self.center) / teacher_temp).softmax(-1)

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """Remembers the mean of the logits; the centre moves at the next step."""
        self._mean = mean_logits(teacher_output)
        self.updated = False

    @torch.no_grad()
    def apply_center_update(self) -> None:
        if not self.updated and self._mean is not None:
            move_center_(self.center, self._mean, self.center_momentum)
            self.updated = True


def _assignments(logits: Tensor, temp: float, iterations: int) -> Tensor:
    center = losses.sinkhorn_center(logits.float(), temp, iterations)
    return ((logits.float() - center) / temp).softmax(1)


class DINOLoss(_Teacher):
    """``DINOLoss(out_dim, student_temp=0.1, center_momentum=0.9)``; a call sums over all pairs of views."""

    def __init__(self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__((1, out_dim), student_temp, center_momentum)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(self, teacher_output: Tensor, teacher_temp: float, n_iterations: int = 3) -> Tensor:
        """Sinkhorn-Knopp's assignments of the rows of all processes to the prototypes, float32."""
        return _assignments(teacher_output, teacher_temp, n_iterations)

    def forward(
        self, student_output_list: Sequence[Tensor], teacher_out_softmaxed_centered_list: Sequence[Tensor]
    ) -> Tensor:
        student = [t.float() for t in student_output_list]
        teacher = [t.float() for t in teacher_out_softmaxed_centered_list]
        value = view_cross_entropy(
            student, teacher, batch=len(student[0]), student_temp=self.student_temp, teacher_temp=None, same=True
        )
        return value.mean()


class iBOTPatchLoss(_Teacher):
    """``iBOTPatchLoss(patch_out_dim, student_temp=0.1, center_momentum=0.9)``."""

    def __init__(self, patch_out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__((1, 1, patch_out_dim), student_temp, center_momentum)

    @torch.no_grad()
    def sinkhorn_knopp_teacher(
        self, teacher_output: Tensor, teacher_temp: float, n_masked_patches_tensor: Tensor, n_iterations: int = 3
    ) -> Tensor:
        """Sinkhorn-Knopp's assignments; how many patches there are everywhere changes nothing and is not read."""
        return _assignments(teacher_output, teacher_temp, n_iterations)

    def forward(self, student_patch_tokens: Tensor, teacher_patch_tokens: Tensor, student_masks_flat: Tensor) -> Tensor:
        """All patches ``[B, N, K]``, of which the masked ones count: the mean over the images of their means."""
        masked = student_masks_flat.to(student_patch_tokens.device).float()
        value = self._rows(student_patch_tokens.flatten(0, 1), teacher_patch_tokens.flatten(0, 1)).view_as(masked)
        return ((value * masked).sum(1) / masked.sum(1).clamp(min=1.0)).mean()

    def forward_masked(
        self,
        student_patch_tokens_masked: Tensor,
        teacher_patch_tokens_masked: Tensor,
        student_masks_flat: Tensor,
        n_masked_patches: int | None = None,
        masks_weight: Tensor | None = None,
    ) -> Tensor:
        """The masked patches ``[M, K]``; the first ``n_masked_patches`` count, the rest is padding."""
        if masks_weight is None:
            counts = student_masks_flat.sum(-1).clamp(min=1.0)
            masks_weight = (1 / counts).unsqueeze(-1).expand_as(student_masks_flat)[student_masks_flat]
        n = n_masked_patches
        value = self._rows(student_patch_tokens_masked[:n], teacher_patch_tokens_masked[:n])
        return (value * masks_weight[:n]).sum() / len(student_masks_flat)

    def _rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        rows = [student.float()], [teacher.float()]
        return view_cross_entropy(
            *rows, batch=len(student), student_temp=self.student_temp, teacher_temp=None, same=True
        )


class KoLeoLoss(losses.KoLeoLoss):
    """``KoLeoLoss()(student_output, eps=1e-8)``. An opposite pair are neighbours here; there one is its own."""

    def forward(self, student_output: Tensor, eps: float = 1e-8) -> Tensor:
        return losses.koleo_loss(student_output, self.p, eps, backend=self.backend)
