r"""CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3).

An image and its caption, each through an encoder of its own and a linear map, have to find each other among all those
of the batch. Captions with their words swapped or shuffled may stand beside them as further wrong answers (NegCLIP).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.batch import Batch
from methods.data import Data
from methods.encoders import Encoder
from methods.hard_negatives import with_hard_negatives
from methods.image_text import ImageTextConfig, measure_image_text
from methods.processes import from_all
from methods.text import TextEncoder
from methods.tokenizer import Tokenizer
from ssl_kernels import clip_loss


class CLIP(nn.Module):
    needs = ("captions",)

    @dataclass(frozen=True)
    class Config(ImageTextConfig):
        """CLIP: images and captions find each other in the batch (Radford et al. 2021)."""

    def __init__(self, encoder: Encoder, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        size = config.text_width, config.text_layers, config.text_heads
        dropout = config.text_dropout, config.word_dropout
        self.text_encoder = TextEncoder(tokenizer, *size, config.text_pooling, *dropout)
        self.image_projection = nn.Linear(encoder.dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed(self, images: Tensor) -> Tensor:
        return F.normalize(self.image_projection(self.encoder(images)), dim=1)

    def describe(self, captions: list[str]) -> Tensor:
        return F.normalize(self.text_projection(self.text_encoder(captions)), dim=1)

    def forward(self, batch: Batch) -> list[Tensor]:
        images = self.embed(torch.cat(batch.views)).chunk(len(batch.views))
        texts = with_hard_negatives(self.describe, batch, self.config.hard_negatives)
        return [*images, *texts]

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        *views, texts, negatives = (from_all(z) for z in embeddings)
        ids = from_all(batch.ids)
        return clip_loss(
            torch.cat(views),
            texts,
            self.logit_scale.exp(),
            negatives=negatives[negatives.any(1)],
            ids=ids.repeat(len(views)),
            text_ids=ids,
            backend=self.config.backend,
        )

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        self.logit_scale.clamp_(0, math.log(100))

    def measure(self, data: Data, folder: Path | None) -> dict[str, float]:
        return measure_image_text(self, self.embed, self.describe, data, self.config.templates, folder is not None)
