"""The mean over all pairs of views, one asking and another one answering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor


def mean_over_pairs(
    criterion: Callable[[Tensor, Tensor], Tensor], asking: Sequence[Tensor], answering: Sequence[Tensor]
) -> Tensor:
    """``(criterion(p1, z2) + criterion(p2, z1)) / 2`` for two views, and so on for more."""
    return torch.stack([criterion(asking[a], answering[b]) for a, b in permutations(range(len(asking)), 2)]).mean()
