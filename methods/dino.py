r"""DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294, algorithm 1).

The teacher, an average of past students, puts each large view of an image on a few of many prototypes; the student is
to do the same from every other view, small ones among them. Nothing is contrasted: what keeps all images from getting
the same output is that the teacher's logits are centred and sharpened.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.batch import Batch
from methods.distillation import Distillation, DistillationConfig
from methods.encoders import Encoder
from methods.multicrop import of_each_view
from ssl_kernels import FusedDINOHeadLoss


class DINO(Distillation):
    @dataclass(frozen=True)
    class Config(DistillationConfig):
        """DINO: small views predict what an averaged teacher makes of large ones (Caron et al. 2021)."""

        center: bool = True
        """Take their mean from the teacher's logits. Without it, one prototype gets all images."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.criterion = FusedDINOHeadLoss(
            config.prototypes,
            student_temp=config.student_temp,
            center_momentum=0.9 if config.center else 1.0,  # at 1 it stays zero
            backend=config.backend,
        )

    def forward(self, batch: Batch) -> list[Tensor]:
        student = of_each_view(self.embed, batch.views)
        teacher = of_each_view(self.embed_by_teacher, batch.views[: self.config.views])
        return [*student, *teacher]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        n = self.config.views
        student, teacher = embeddings[:-n], embeddings[-n:]
        prototypes, theirs = self.prototypes_of("head")
        return self.criterion(teacher, student, prototypes, self.teacher_temp, teacher_prototypes=theirs)

    def center_of(self, x_teacher: Tensor) -> Tensor:
        return self.criterion.center
