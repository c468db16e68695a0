r"""SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1).

CLIP with another question: not which of all the captions is the image's, but for every pair of image and caption, do
they belong together? Pairs of the same id do, wherever in the batch they stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch
from methods.clip import CLIP
from methods.encoders import Encoder
from methods.image_text import ImageTextConfig
from methods.processes import from_all, rank
from methods.tokenizer import Tokenizer
from ssl_kernels import siglip_loss


class SigLIP(CLIP):
    @dataclass(frozen=True)
    class Config(ImageTextConfig):
        """SigLIP: do this image and this caption belong together, for all pairs (Zhai et al. 2023)."""

    def __init__(self, encoder: Encoder, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(encoder, config, tokenizer)
        # As the paper begins: nearly all pairs do not belong together, and the first loss should know it
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def loss(self, embeddings: list[Tensor], batch: Batch) -> Tensor:
        *views, texts, negatives = embeddings
        scale, n = self.logit_scale.exp(), len(texts)
        own, texts, negatives = from_all(batch.ids), from_all(texts), from_all(negatives)
        columns = torch.cat([texts, negatives[negatives.any(1)]])
        others = batch.ids[:, None] == own  # of the same id, but not the image's own caption: those siglip_loss knows
        others[:, rank() * n : rank() * n + n].fill_diagonal_(False)
        image, text = others.nonzero(as_tuple=True)
        total = 0.0
        for x in views:
            loss = siglip_loss(x, columns, scale, self.logit_bias, offset=rank() * n, backend=self.config.backend)
            # softplus(s) became softplus(-s) = softplus(s) - s
            total += loss - (scale * (x[image] * texts[text]).sum() + self.logit_bias * len(image)) / n
        return total / len(views)
