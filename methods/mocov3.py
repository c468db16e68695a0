r"""MoCo v3 (Chen, Xie & He 2021, https://arxiv.org/abs/2104.02057, algorithm 1).

Without a queue: what is predicted for one view has to find the key of another view of the image among those of the
batch, and the momentum of the key encoder grows to 1.
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
from methods.processes import from_all, rank
from ssl_kernels import EMAModel, cosine_momentum, info_nce_loss


class MoCoV3(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """MoCo v3: a prediction finds its image's key in the batch (Chen, Xie and He 2021)."""

        temperature: float = 1.0
        """tau, by which the loss is also multiplied, twice. The paper has 1 for ResNets and 0.2 for transformers."""
        ema_momentum: float = 0.99
        """Of the key encoder at the first step; it grows to 1 along half a cosine."""
        hidden_dim: int = 4096
        """Width inside the projection and prediction heads."""
        projection_dim: int = 256
        """Width of what the loss compares."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, config.hidden_dim, config.projection_dim, last="norm")
        self.predictor = mlp(config.projection_dim, config.hidden_dim, config.projection_dim)
        self.key_encoder = EMAModel(self._base_encoder(), buffers="keep", backend=config.backend)
        self.temperature, self.ema_momentum, self.backend = config.temperature, config.ema_momentum, config.backend

    def _base_encoder(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.projector)

    def embed(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    def forward(self, batch: Batch) -> list[Tensor]:
        x, n = torch.cat(batch.views), len(batch.views)
        q = self.predictor(self.embed(x))
        k = self.key_encoder(x)
        return [*q.chunk(n), *k.chunk(n)]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        n = len(embeddings) // 2
        q, k = embeddings[:n], [from_all(z.detach()) for z in embeddings[n:]]
        return 2 * mean_over_pairs(self._contrast, q, k)

    def _contrast(self, q: Tensor, k: Tensor) -> Tensor:
        first = rank() * len(q)  # the key of this process's first query
        return 2 * self.temperature * info_nce_loss(q, k, None, self.temperature, offset=first, backend=self.backend)

    def after_step(self, step: int, total: int) -> None:
        self.key_encoder.update(self._base_encoder(), cosine_momentum(step, total, self.ema_momentum))
