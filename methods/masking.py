"""Which patches are hidden from a student: rectangles, as in BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254).

DINOv2 hides a tenth to a half of the patches in every other view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from methods.config import check_shares

LEAST = 4  # patches of a rectangle, while so many are left to hide
LONGEST = 1 / 0.3  # times as long as it is wide


class BlockMasks:
    """Which patches of the large views are hidden.

    Args:
        views, masked: how many large views an image has, and how many of them, whichever, have hidden patches.
        ratio: smallest and largest share of the patches that is hidden in those; uniform between the two.
    """

    def __init__(self, views: int, masked: int, ratio: tuple[float, float]) -> None:
        if not 1 <= masked <= views:
            raise ValueError(f"masked_views: expected 1 to {views}, the large views, got {masked}")
        check_shares("mask_ratio", ratio)
        self.views, self.masked, self.ratio = views, masked, ratio

    def __call__(self, seeds: Sequence[int], patches: int) -> Tensor:
        """For images with these seeds, on which alone it depends: bool ``[views * N, patches]``, view by view."""
        side = math.isqrt(patches)
        masks = np.zeros((self.views, len(seeds), side, side), dtype=bool)
        for image, seed in enumerate(seeds):
            random = np.random.default_rng(seed)
            for view in random.permutation(self.views)[: self.masked]:
                _hide(masks[view, image], max(1, round(random.uniform(*self.ratio) * patches)), random)
        return torch.from_numpy(masks).flatten(2).flatten(0, 1)


def _hide(mask: np.ndarray, patches: int, random: np.random.Generator) -> None:
    """Rectangles at random places, until exactly so many are hidden."""
    side, left = len(mask), patches
    while left:
        area = random.uniform(min(LEAST, left), left)
        stretch = math.exp(random.uniform(-1, 1) * math.log(LONGEST))
        h, w = (min(side, max(1, round(math.sqrt(area * s)))) for s in (stretch, 1 / stretch))
        top, start = random.integers(side - h + 1), random.integers(side - w + 1)
        rectangle = mask[top : top + h, start : start + w]
        new = int((~rectangle).sum())
        if new <= left:
            rectangle[:] = True
            left -= new
