r"""DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193, section 4).

DINO's loss on the class tokens; iBOT's on the patches that are hidden from the student; the teacher's outputs are
spread over the prototypes by Sinkhorn-Knopp; KoLeo spreads the class tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.batch import Batch
from methods.distillation import Distillation, DistillationConfig
from methods.encoders import Encoder
from methods.masking import BlockMasks
from methods.multicrop import of_each_view
from methods.processes import world_size
from ssl_kernels import KoLeoLoss, fused_dino_head_loss, fused_ibot_head_loss, fused_sinkhorn_center


class DINOv2(Distillation):
    @dataclass(frozen=True)
    class Config(DistillationConfig):
        """DINOv2: DINO, and hidden patches are predicted too (Oquab et al. 2023)."""

        encoder: str = "vit"
        ema_momentum: float = 0.992
        separate_heads: bool = True
        """A head of their own for the patches."""
        ibot_weight: float = 1.0
        """Of the loss on hidden patches."""
        koleo_weight: float = 0.1
        """Of the loss that spreads the class tokens, for each large view."""
        masked_views: int = 1
        """How many of the large views of an image have hidden patches."""
        mask_ratio: tuple[float, float] = (0.1, 0.5)
        """Smallest and largest share of the patches that is hidden in those."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        if not encoder.has_tokens:
            raise ValueError(f"encoder: expected one with patches, vit or timm:vit_..., got {config.encoder!r}")
        heads = {"patch_head": self.new_head(encoder, config)} if config.separate_heads else {}
        super().__init__(encoder, config, **heads)
        self.patch_head = "patch_head" if config.separate_heads else "head"
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim))
        self.masks = BlockMasks(config.views, config.masked_views, config.mask_ratio)
        self.koleo = KoLeoLoss(gather_distributed=world_size() > 1, backend=config.backend)

    def forward(self, batch: Batch) -> list[Tensor]:
        n, teacher = self.config.views, self.teacher.module
        large = torch.cat(batch.views[:n])
        theirs = teacher["encoder"](large, tokens=True)
        mask = self.masks(batch.seeds, theirs.shape[1] - 1).to(large.device)
        ours = self.encoder(large, mask, self.mask_token, tokens=True)
        views = [*self.student["head"](ours[:, 0]).chunk(n), *of_each_view(self.embed, batch.views[n:])]
        hidden, answers = (self._hidden(net, x, mask) for net, x in ((self.student, ours), (teacher, theirs)))
        of_large = teacher["head"](theirs[:, 0]), hidden, answers, ours[:, 0]
        return [*views, *(part for x in of_large for part in x.chunk(n))]

    def _hidden(self, network: nn.ModuleDict, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features of the hidden patches, ``[views * N, T, D]``, and zeros in the place of the others."""
        x = network[self.patch_head](tokens[:, 1:][mask])
        return x.new_zeros(*mask.shape, x.shape[1]).index_put((mask,), x)

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        c, n = self.config, self.config.views
        views, of_large = embeddings[: -4 * n], embeddings[-4 * n :]
        teacher, hidden, answers, classes = (of_large[k * n :][:n] for k in range(4))
        dino = fused_dino_head_loss(views, teacher, **self._spread("head", torch.cat(teacher)))
        mask = self.masks(batch.seeds, hidden[0].shape[1]).to(hidden[0].device)
        hidden, answers = torch.cat(hidden)[mask], torch.cat(answers)[mask]
        ibot = fused_ibot_head_loss(hidden, answers, mask=mask, **self._spread(self.patch_head, answers))
        koleo = torch.stack([self.koleo(x) for x in classes]).sum()
        return dino + c.ibot_weight * ibot + c.koleo_weight * koleo

    def _spread(self, head: str, rows: Tensor, everywhere: bool = True) -> dict[str, Any]:
        """What a loss has to know for the teacher's ``rows`` to be spread evenly over the prototypes of a head."""
        prototypes, theirs = self.prototypes_of(head)
        temp, backend = self.teacher_temp, self.config.backend
        center = fused_sinkhorn_center(rows, theirs, temp, gather_distributed=everywhere, backend=backend)
        temps = {"student_temp": self.config.student_temp, "teacher_temp": temp}
        return {"prototypes": prototypes, "teacher_prototypes": theirs, "center": center, "backend": backend, **temps}

    def center_of(self, x_teacher: Tensor) -> Tensor:
        return self._spread("head", x_teacher, everywhere=False)["center"]
