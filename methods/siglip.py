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
from ssl_kernels.losses.classes import class_sizes, class_sums, dense_classes


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
        *views, own, negatives = embeddings
        n, offset = len(own), rank() * len(own)
        texts, negatives = from_all(own), from_all(negatives)
        columns = torch.cat([texts, negatives[negatives.any(1)]])
        # siglip_loss takes an image's own caption for its only positive. With one more, softplus(s) should have been
        # softplus(-s) = softplus(s) - s: linear, so that all of them together need the sum over the id and no matrix
        ids = dense_classes(torch.cat([batch.ids, from_all(batch.ids)]))
        mine, everyones = ids[:n], ids[n:]
        others = class_sums(texts, everyones, len(ids))[mine] - own
        count = (class_sizes(everyones, len(ids))[mine] - 1).sum()
        scale, bias, total = self.logit_scale.exp(), self.logit_bias, 0.0
        for x in views:
            loss = siglip_loss(x, columns, scale, bias, offset=offset, backend=self.config.backend)
            total += loss - (scale * (x * others).sum() + bias * count) / n
        return total / len(views)
