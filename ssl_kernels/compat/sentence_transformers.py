"""sentence-transformers' loss: ``from ssl_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss``.

The class is the library's own, subclassed under its own name, made (and the library imported) when it is first asked
for: embedding, configuration and model card stay what they are. What it computes itself is InfoNCE by cosines from
queries to documents, and its symmetric form (both directions, each with its own softmax), over one device or several;
other similarities, directions and hardness weights are the library's own business, as they were.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssl_kernels.losses import info_nce_loss
from ssl_kernels.losses.gather import gather_rows, world_size

NAME = "MultipleNegativesRankingLoss"
FORWARD, BACKWARD = "query_to_doc", "doc_to_query"


def __getattr__(name: str) -> type:
    if name != NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[NAME] = made = _class()
    return made


def _class() -> type:
    losses: Any = import_module("sentence_transformers.losses")
    util = import_module("sentence_transformers.util")

    class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
        def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
            directions = set(self.directions)
            forward, both = directions == {FORWARD}, directions == {FORWARD, BACKWARD}
            ours = forward or (both and self.partition_mode == "per_direction")
            weighted = self.hardness_mode is not None and self.hardness_strength > 0
            if not ours or weighted or self.similarity_fct is not util.cos_sim or len(embeddings) < 2:
                return super().compute_loss_from_embeddings(embeddings, labels)
            queries, *docs = embeddings
            everyone, offset = embeddings, 0
            if self.gather_across_devices and world_size() > 1:
                everyone = [gather_rows(e, world_size()) for e in embeddings]
                offset = torch.distributed.get_rank() * len(queries)
            rest = {"temperature": 1 / self.scale, "offset": offset}
            loss = info_nce_loss(queries, torch.cat(everyone[1:]), **rest)
            return loss if forward else (loss + info_nce_loss(docs[0], everyone[0], **rest)) / 2

    MultipleNegativesRankingLoss.__module__ = __name__  # so that it can be pickled
    MultipleNegativesRankingLoss.__qualname__ = NAME
    return MultipleNegativesRankingLoss
