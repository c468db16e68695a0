r"""SupCon (Khosla et al. 2020, https://arxiv.org/abs/2004.11362): SimCLR with labels.

Every view has to find all views of all images of its class, on the average over them. The head is thrown away, and a
linear classifier is fitted to the features afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods import config
from methods.batch import Batch
from methods.encoders import Encoder
from methods.heads import mlp
from methods.processes import from_all
from ssl_kernels import SupConLoss


class SupCon(nn.Module):
    needs = ("labels",)

    @dataclass(frozen=True)
    class Config(config.Config):
        """SupCon: every view finds the views of its class; needs labels (Khosla et al. 2020)."""

        head_norm: bool = False
        """Batch norm inside the head: learns sooner in short runs. The paper has none."""
        temperature: float = 0.1
        """tau: small ones look at the nearest negatives only."""
        projection_dim: int = 128
        """Width of what the loss compares."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp(encoder.dim, encoder.dim, config.projection_dim, batch_norm=config.head_norm)
        self.criterion = SupConLoss(config.temperature, backend=config.backend)

    def embed(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))

    def forward(self, batch: Batch) -> list[Tensor]:
        z = self.embed(torch.cat(batch.views))
        return list(z.chunk(len(batch.views)))

    def loss(self, z: list[Tensor], batch: Batch) -> Tensor:
        # Every process has the whole loss, whose gradients come back from all of them and are averaged
        return self.criterion([from_all(view) for view in z], from_all(batch.labels))
