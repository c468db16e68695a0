r"""MoCo v1 and v2 (He et al. 2019, https://arxiv.org/abs/1911.05722; Chen et al. 2020, https://arxiv.org/abs/2003.04297).

A view of an image has to find the key of another one among a queue of keys of earlier batches. Keys come from a second
encoder that follows the first slowly, so that those in the queue still fit together. v2 has an MLP as its head.
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
from ssl_kernels import EMAModel, InfoNCELoss, MemoryQueue
from ssl_kernels.losses.gather import shuffle_rows, unshuffle_rows


class MoCo(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """MoCo: a view finds its image's key in a queue (He et al. 2019; Chen et al. 2020)."""

        mlp_head: bool = True
        """v2's head, an MLP. Without it the linear one of v1, whose temperature was 0.07."""
        head_norm: bool = False
        """Batch norm inside the MLP, as v3 has it: learns sooner in short runs."""
        temperature: float = 0.2
        """tau: small ones look at the nearest negatives only."""
        queue_size: int = 65536
        """Keys that are kept, of each view."""
        ema_momentum: float = 0.999
        """Of the key encoder, which follows the encoder."""
        symmetric: bool = False
        """All views ask and all answer, each from a queue of its own; else the first one asks and the others answer."""
        projection_dim: int = 128
        """Width of what the loss compares."""
        sync_batch_norm: bool = False
        """Instead, keys are shuffled among the processes, or the groups of --bn-groups, and each has its statistics."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        hidden = [encoder.dim] if config.mlp_head else []
        self.head = mlp(encoder.dim, *hidden, config.projection_dim, batch_norm=config.head_norm)
        self.key_encoder = EMAModel(self._query_encoder(), config.ema_momentum, buffers="keep", backend=config.backend)
        self.symmetric = config.symmetric
        answering = config.views if config.symmetric else config.views - 1
        self.queues = nn.ModuleList(
            MemoryQueue(config.queue_size, config.projection_dim, backend=config.backend) for _ in range(answering)
        )
        self.criterion = InfoNCELoss(config.temperature, backend=config.backend)

    def _query_encoder(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    def embed(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))

    def forward(self, batch: Batch) -> list[Tensor]:
        asking, answering = (batch.views, batch.views) if self.symmetric else (batch.views[:1], batch.views[1:])
        q = self.embed(torch.cat(asking))
        shuffled, back = shuffle_rows(torch.cat(answering))
        k = unshuffle_rows(self.key_encoder(shuffled), back)
        return [*q.chunk(len(asking)), *k.chunk(len(answering))]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        q, k = embeddings[: -len(self.queues)], embeddings[-len(self.queues) :]
        losses = []
        for b, (keys, queue) in enumerate(zip(k, self.queues, strict=True)):
            keys = keys.detach()
            others = [x for a, x in enumerate(q) if not (self.symmetric and a == b)]
            losses.append(self.criterion(torch.cat(others), keys.repeat(len(others), 1), queue.rows))
            queue.enqueue(from_all(keys))
        return torch.stack(losses).mean()

    def after_step(self, step: int, total: int) -> None:
        self.key_encoder.update(self._query_encoder())
