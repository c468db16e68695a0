r"""BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733, algorithm 1).

From one view of an image, the online network predicts what a target network makes of another one; the target is an
average of past online networks and gets no gradient. There are no negatives: what keeps all images from being mapped to
one point is the predictor and the stop-gradient, as is seen without them.
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
from ssl_kernels import EMAModel, NegativeCosineSimilarity, cosine_momentum


class BYOL(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """BYOL: one view predicts the other, seen by an average of the network (Grill et al. 2020)."""

        ema_momentum: float = 0.996
        """Of the target network at the first step; it grows to 1 along half a cosine."""
        hidden_dim: int = 4096
        """Width inside the projector and the predictor."""
        projection_dim: int = 256
        """Width of what the loss compares."""
        projection_norm: bool = False
        """Batch norm at the end of the projector, as SimSiam and MoCo v3 have it: all directions are used sooner."""
        predictor: bool = True
        """Without it, the projection itself is to be the other's: the embeddings collapse."""
        stop_gradient: bool = True
        """Without it, the online network is its own target, and has its gradient: the embeddings collapse."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        last = "norm" if config.projection_norm else "linear"
        self.projector = mlp(encoder.dim, config.hidden_dim, config.projection_dim, last=last)
        self.predictor = mlp(config.projection_dim, config.hidden_dim, config.projection_dim)
        if not config.predictor:
            self.predictor = nn.Identity()
        self.target = EMAModel(self._online(), buffers="keep", backend=config.backend)
        self.cosine = NegativeCosineSimilarity()
        self.stop_gradient, self.ema_momentum = config.stop_gradient, config.ema_momentum

    def _online(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.projector)

    def embed(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    def forward(self, batch: Batch) -> list[Tensor]:
        x, n = torch.cat(batch.views), len(batch.views)
        z = self.embed(x)
        p = self.predictor(z)
        target = self.target(x) if self.stop_gradient else z
        return [*p.chunk(n), *target.chunk(n)]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        n = len(embeddings) // 2
        p, z = embeddings[:n], [t.detach() if self.stop_gradient else t for t in embeddings[n:]]
        return 2 * mean_over_pairs(self._distance, p, z)

    def _distance(self, p: Tensor, z: Tensor) -> Tensor:
        """The squared one, on the unit sphere."""
        return 2 + 2 * self.cosine(p, z)

    def after_step(self, step: int, total: int) -> None:
        self.target.update(self._online(), cosine_momentum(step, total, self.ema_momentum))
