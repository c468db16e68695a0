"""Multi-crop (Caron et al. 2020, https://arxiv.org/abs/2006.09882): a few large views, and more that are small.

Small ones show a small part of the image in few pixels, so that they cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from methods.config import Config, check_probability, check_shares


@dataclass(frozen=True)
class MultiCrop(Config):
    """Settings of the methods whose ``views`` are joined by local ones."""

    local_views: int = 6
    """Small views of a small part of each image, beside the others: --views is the number of those."""
    local_size: int | None = None
    """Side of the local views in pixels; default: half of the others', rounded up to whole patches."""
    local_crop: tuple[float, float] = (0.05, 0.4)
    """Share of the area that a local view shows."""
    local_blur: float = 0.0
    """Probability of blurring a local view; 0.5 on ImageNet."""

    def local_size_of(self, size: int) -> int:
        """``local_size`` beside views of ``size`` pixels."""
        return self.local_size or -(-size // (2 * self.patch_size)) * self.patch_size


def check_crops(config: MultiCrop) -> None:
    if config.local_views < 0:
        raise ValueError(f"local_views: expected 0 or more, got {config.local_views}")
    if config.views + config.local_views < 2:
        raise ValueError("local_views: expected at least 1 beside a single view, or there is no pair, got 0")
    if config.local_size is not None and config.local_size < 4:
        raise ValueError(f"local_size: expected at least 4 pixels, got {config.local_size}")
    check_shares("local_crop", config.local_crop)
    check_probability("local_blur", config.local_blur)


def of_each_view(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """What the network makes of each view; neighbours of one size go through it together."""
    out: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape[-1]):
        same = list(group)
        out += network(torch.cat(same)).chunk(len(same))
    return out
