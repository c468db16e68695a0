"""What a method is given: a micro-batch of augmented images, and what else the data set knows about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """Row ``i`` of everything belongs to the same sample. What the data set does not have is None."""

    views: list[Tensor] = field(default_factory=list)
    """Float images in [0, 1], ``[N, C, S, S]`` each."""
    labels: Tensor | None = None
    """int64 ``[N]``."""
    captions: list[str] | None = None
    ids: Tensor | None = None
    """int64 ``[N]``, the same for pairs of image and caption that show or say the same."""
    seeds: list[int] | None = None
    """One for each sample, of its place in the whole batch: for what is drawn for a sample by itself, and must
    not depend on how the batch is cut."""

    @classmethod
    def whole(cls, parts: Sequence[Batch]) -> Batch:
        """The micro-batches of a step as one, without their views: those have become embeddings, and are large."""
        names = [f.name for f in fields(cls) if f.name != "views"]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        return cls(**{name: _joined(column) for name, column in columns.items()})


def _joined(column: list[Any]) -> Any:
    if column[0] is None:
        return None
    return torch.cat(column) if isinstance(column[0], Tensor) else [item for part in column for item in part]
