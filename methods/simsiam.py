r"""SimSiam (Chen & He 2021, https://arxiv.org/abs/2011.10566, algorithm 1).

From one view of an image, a predictor says what the projection of another one is, which gets no gradient. There is
neither a negative nor a second network: what keeps all images from being mapped to one point is the stop-gradient,
together with the predictor, as is seen without them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods import config
from methods.batch import Batch
from methods.encoders import Encoder
from methods.heads import mlp
from methods.pairs import mean_over_pairs
from ssl_kernels import NegativeCosineSimilarity


class SimSiam(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """SimSiam: one view predicts the other, which stands still (Chen and He 2021)."""

        projection_dim: int = 2048
        """Width of what the loss compares."""
        bottleneck_dim: int = 512
        """Width inside the predictor."""
        predictor: bool = True
        """Without it, the projection itself is to be the other's: the embeddings collapse."""
        stop_gradient: bool = True
        """Without it, both views have the gradient: the embeddings collapse."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        d = config.projection_dim
        self.encoder = encoder
        self.projector = mlp(encoder.dim, d, d, d, last="norm")
        self.predictor = mlp(d, config.bottleneck_dim, d) if config.predictor else nn.Identity()
        self.stop_gradient = config.stop_gradient
        self.criterion = NegativeCosineSimilarity()

    def embed(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    def forward(self, batch: Batch) -> list[Tensor]:
        n = len(batch.views)
        z = self.embed(torch.cat(batch.views))
        p = self.predictor(z)
        return [*p.chunk(n), *z.chunk(n)]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        n = len(embeddings) // 2
        p, z = embeddings[:n], [t.detach() if self.stop_gradient else t for t in embeddings[n:]]
        return mean_over_pairs(self.criterion, p, z)
