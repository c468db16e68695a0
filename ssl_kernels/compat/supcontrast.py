"""SupContrast's loss over features ``[B, V, D]``: ``from ssl_kernels.compat.supcontrast import SupConLoss``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_kernels.losses import sup_con_loss
from ssl_kernels.losses.classes import class_sizes, dense_classes

__all__ = ["SupConLoss"]


class SupConLoss(nn.Module):
    """Supervised contrastive loss, or SimCLR's without labels: ``SupConLoss()(features, labels)``.

    Args:
        temperature: tau.
        contrast_mode: ``"all"``: every view is an anchor; ``"one"``: the first alone.
        base_temperature: the loss is multiplied by ``temperature / base_temperature``.
    """

    def __init__(self, temperature: float = 0.07, contrast_mode: str = "all", base_temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mean over the anchors; one without a positive counts as 0 (in old versions, it made the mean NaN).

        Args:
            features: ``[B, V, ...]``, expected on the unit sphere: taken as they are.
            labels: ``[B]``; samples with the same label are positives of one another.
            mask: ``[B, B]`` instead, nonzero where ``j`` is a positive of ``i``; may be asymmetric.

        Raises:
            ValueError: features of fewer than three dimensions, labels and a mask at once, labels of another length,
                a mask of another shape, an unknown contrast_mode.
        """
        if features.dim() < 3:
            raise ValueError(f"features: expected [B, V, ...], at least 3 dimensions, got {tuple(features.shape)}")
        if labels is not None and mask is not None:
            raise ValueError("Cannot define both `labels` and `mask`")
        if self.contrast_mode not in ("all", "one"):
            raise ValueError(f"Unknown mode: {self.contrast_mode}")
        features = features.flatten(2)
        count = len(features)
        if labels is not None:
            labels = labels.reshape(-1)
            if len(labels) != count:
                raise ValueError("Num of labels does not match num of features")
        if mask is not None and mask.shape != (count, count):
            raise ValueError(f"mask: expected shape ({count}, {count}), got {tuple(mask.shape)}")
        if mask is None and self.contrast_mode == "all":
            loss = self._by_labels(features, labels)
        else:
            loss = self._by_mask(features, labels, mask)
        return self.temperature / self.base_temperature * loss

    def _by_labels(self, features: Tensor, labels: Tensor | None) -> Tensor:
        views = list(features.unbind(1))
        loss = sup_con_loss(views, labels, self.temperature, normalize=False)
        if len(views) > 1:
            return loss
        classes = dense_classes(torch.arange(len(features), device=features.device) if labels is None else labels)
        return loss * (class_sizes(classes)[classes] > 1).to(loss.dtype).mean()  # of all anchors, not of those that ask

    def _by_mask(self, features: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """Any positives: the matrix is stored, as the mask is."""
        count, views = features.shape[:2]
        rows = features.transpose(0, 1).flatten(0, 1)
        anchors = rows if self.contrast_mode == "all" else rows[:count]
        if mask is None:
            labels = torch.arange(count, device=rows.device) if labels is None else labels
            mask = labels[:, None] == labels
        weights = mask.to(rows.dtype).repeat(len(anchors) // count, views)
        itself = torch.eye(len(anchors), len(rows), dtype=torch.bool, device=rows.device)
        weights = weights.masked_fill(itself, 0.0)
        log_prob = (anchors @ rows.T / self.temperature).masked_fill(itself, float("-inf")).log_softmax(1)
        positives = weights.sum(1)
        terms = (weights * log_prob.masked_fill(itself, 0.0)).sum(1) / torch.where(positives < 1e-6, 1.0, positives)
        return -terms.mean()
