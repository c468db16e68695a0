"""pytorch-metric-learning's losses: ``from ssl_kernels.compat.pml import NTXentLoss``.

The classes are the library's own, subclassed under their own names, because its wrappers ask for both; they are made,
and the library imported, when they are first asked for. What they compute themselves is the usual call: labels alone,
the cosine distance and the default reducer. Everything else (miners, reference embeddings, other distances, reducers
that want every pair's loss, statistics) is the library's own business, as it was.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssl_kernels.losses import info_nce_loss, nt_xent_loss, sup_con_loss

NAMES = ("NTXentLoss", "SelfSupervisedLoss", "SupConLoss")


def __getattr__(name: str) -> type:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _classes()
    globals().update(made)
    return made[name]


def _classes() -> dict[str, type]:
    losses: Any = import_module("pytorch_metric_learning.losses")
    reducers = import_module("pytorch_metric_learning.reducers")
    distances = import_module("pytorch_metric_learning.distances")

    def usual(loss: Any, reducer: type) -> bool:
        d = loss.distance
        plain = type(d) is distances.CosineSimilarity and d.normalize_embeddings and d.p == 2 and d.power == 1
        return plain and type(loss.reducer) is reducer and not loss.collect_stats

    def labels_alone(
        loss: Any, reducer: type, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any
    ) -> bool:
        given = indices_tuple is None and ref_emb is embeddings and labels is not None
        return given and not labels.is_floating_point() and usual(loss, reducer)

    def reduced(loss: Tensor) -> dict[str, dict[str, Any]]:
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    class NTXentLoss(losses.NTXentLoss):
        """A term for each pair of positives, against the negatives of its anchor."""

        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if not labels_alone(self, reducers.MeanReducer, embeddings, labels, indices_tuple, ref_emb):
                return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return reduced(sup_con_loss(embeddings, labels, self.temperature, form="pairs"))

    class SupConLoss(losses.SupConLoss):
        """The mean over the anchors that have a positive; 0, as in the library, where there is no negative at all."""

        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if not labels_alone(self, reducers.AvgNonZeroReducer, embeddings, labels, indices_tuple, ref_emb):
                return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            loss = sup_con_loss(embeddings, labels, self.temperature)
            return reduced(torch.where((labels == labels[0]).all(), 0.0, loss))

    class SelfSupervisedLoss(losses.SelfSupervisedLoss):
        """``SelfSupervisedLoss(NTXentLoss())(embeddings, ref_emb)``: two views, no labels."""

        def forward(self, embeddings, ref_emb):
            default = {NTXentLoss: reducers.MeanReducer, SupConLoss: reducers.AvgNonZeroReducer}.get(type(self.loss))
            if default is None or self.loss.embedding_regularizer is not None or not usual(self.loss, default):
                return super().forward(embeddings, ref_emb)
            if self.symmetric:
                return nt_xent_loss(embeddings, ref_emb, self.loss.temperature)
            return info_nce_loss(embeddings, ref_emb, None, self.loss.temperature)

    made: dict[str, type] = {c.__name__: c for c in (NTXentLoss, SupConLoss, SelfSupervisedLoss)}
    for name, c in made.items():
        c.__module__, c.__qualname__ = __name__, name  # so that they can be pickled
    return made
