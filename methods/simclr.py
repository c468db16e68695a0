r"""SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709, algorithm 1).

Two augmented views of every image go through one encoder and one projection head; each view has to find the other one
of its image among all the views of the batch. The head is thrown away afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods import config
from methods.batch import Batch
from methods.encoders import Encoder
from methods.heads import SimCLRProjectionHead
from methods.processes import world_size
from ssl_kernels import NTXentLoss


class SimCLR(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """SimCLR: every view finds its twin among the views of the batch (Chen et al. 2020)."""

        temperature: float = 0.5
        """tau: small ones look at the nearest negatives only. The paper has 0.5 on CIFAR-10 and 0.1 on ImageNet."""
        projection_dim: int = 128
        """Width of what the loss compares."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = SimCLRProjectionHead(encoder.dim, encoder.dim, config.projection_dim)
        everywhere = world_size() > 1
        self.criterion = NTXentLoss(config.temperature, gather_distributed=everywhere, backend=config.backend)

    def embed(self, images: Tensor) -> Tensor:
        h = self.encoder(images)
        return self.head(h)

    def forward(self, batch: Batch) -> list[Tensor]:
        z = self.embed(torch.cat(batch.views))
        return list(z.chunk(len(batch.views)))

    def loss(self, z: list[Tensor], batch: Batch) -> Tensor:
        return self.criterion(*z)
