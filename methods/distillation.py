"""What DINO and DINOv2 have in common: a student, a teacher that averages it, and how both are watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from methods.assignments import assignment_monitor
from methods.attention import draw_attention
from methods.data import Data
from methods.encoders import Encoder
from methods.evaluate import features_of
from methods.heads import DINOHead
from methods.multicrop import MultiCrop, check_crops
from ssl_kernels import EMAModel, cosine_momentum

WATCHED = 1024  # test images


@dataclass(frozen=True)
class DistillationConfig(MultiCrop):
    """Settings of DINO and DINOv2; those of the loss by the names that the loss has."""

    least_views: ClassVar[int] = 1
    weight_decay: float = 0.04
    final_weight_decay: float | None = 0.4
    prototypes: int = 65536
    """Outputs of the last layer, K. Their logits are never stored."""
    hidden_dim: int = 2048
    """Width inside the head."""
    bottleneck_dim: int = 256
    """Width of the features that are compared with the prototypes."""
    head_norm: bool = False
    """Batch norm inside the head: all directions are used sooner."""
    freeze_last_layer: int = 1
    """Epochs in which the prototypes stay as they are."""
    ema_momentum: float = 0.996
    """Of the teacher at the first step; it grows to 1 along half a cosine."""
    student_temp: float = 0.1
    """What the student's logits are divided by."""
    teacher_temp: float = 0.04
    """What the teacher's are divided by. A large one does not sharpen: all outputs become uniform."""
    warmup_teacher_temp: float = 0.04
    """That of the first epoch."""
    warmup_teacher_temp_epochs: int = 0
    """Epochs in which it goes from the one to the other."""


class Distillation(nn.Module):
    """A student of an encoder, a head and maybe ``more``, and its teacher.

    A method adds ``forward``, ``loss`` and ``center_of(x_teacher)``, what it takes from the logits of these features.
    """

    def __init__(self, encoder: Encoder, config: DistillationConfig, **more: nn.Module) -> None:
        super().__init__()
        check_crops(config)
        for name in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
            if not getattr(config, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(config, name)}")
        if not 0 <= config.ema_momentum <= 1:
            raise ValueError(f"ema_momentum: expected 0 to 1, got {config.ema_momentum}")
        for name in ("freeze_last_layer", "warmup_teacher_temp_epochs"):
            if getattr(config, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")
        self.config, self.epoch = config, 0
        self.student = nn.ModuleDict({"encoder": encoder, "head": self.new_head(encoder, config), **more})
        self.teacher = EMAModel(self.student, buffers="keep", backend=config.backend)

    @staticmethod
    def new_head(encoder: Encoder, config: DistillationConfig) -> DINOHead:
        return DINOHead(encoder.dim, config.hidden_dim, config.bottleneck_dim, config.prototypes, config.head_norm)

    @property
    def encoder(self) -> nn.Module:
        return self.student["encoder"]

    def embed(self, images: Tensor) -> Tensor:
        return self.student["head"](self.student["encoder"](images))

    def embed_by_teacher(self, images: Tensor) -> Tensor:
        teacher = self.teacher.module
        return teacher["head"](teacher["encoder"](images))

    def prototypes_of(self, head: str) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's."""
        return self.student[head].prototypes, self.teacher.module[head].prototypes

    @property
    def teacher_temp(self) -> float:
        """Of this epoch: equal steps, one an epoch."""
        c, steps = self.config, self.config.warmup_teacher_temp_epochs
        if self.epoch >= steps:
            return c.teacher_temp
        return c.warmup_teacher_temp + (c.teacher_temp - c.warmup_teacher_temp) * self.epoch / max(steps - 1, 1)

    # ------------------------------------------------------------------------------------- what the training loop calls
    def after_backward(self) -> None:
        if self.epoch < self.config.freeze_last_layer:
            for module in self.student.children():
                if isinstance(module, DINOHead):
                    module.directions.grad = None

    def after_step(self, step: int, total: int) -> None:
        self.teacher.update(self.student, cosine_momentum(step, total, self.config.ema_momentum))
        self.epoch = (step + 1) * self.config.epochs // total

    def get_extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]

    def measure(self, data: Data, folder: Path | None) -> dict[str, float]:
        images, device = data.test.images[:WATCHED], self.student["head"].directions.device
        student, teacher = (features_of(self, images, device, f) for f in (self.embed, self.embed_by_teacher))
        prototypes, teacher_prototypes = self.prototypes_of("head")
        if folder is not None and self.encoder.has_tokens:
            draw_attention(folder / "attention.png", self.teacher.module["encoder"], images)
        return assignment_monitor(
            teacher, student, teacher_prototypes, prototypes, self.center_of(teacher),
            self.teacher_temp, self.config.student_temp,
        )  # fmt: skip
