"""The centre that is taken from a teacher's logits: their mean, averaged over the steps.

DINO's (Caron et al. 2021, https://arxiv.org/abs/2104.14294, eq. 4): without it one prototype takes everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_kernels.losses.gather import world_size

__all__ = ["Center"]


class Center(nn.Module):
    """Exponential moving average of the mean of a teacher's logits, over the rows of all processes.

    Args:
        size: the shape of the centre, K last and ones before it.
        mode: ``"mean"``, the only one there is.
        momentum: m, from 0 to 1.

    Attributes:
        value: the centre, float32, part of ``state_dict()``.

    Raises:
        ValueError: another mode, a momentum outside [0, 1], no prototypes.
    """

    value: Tensor

    def __init__(self, size: tuple[int, ...], mode: str = "mean", momentum: float = 0.9) -> None:
        super().__init__()
        check_center(size[-1], mode, momentum)
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(size))

    def update(self, x: Tensor | Sequence[Tensor]) -> None:
        """Moves towards the mean of the logits ``x``, ``[..., K]`` or a sequence of such."""
        move_center_(self.value, mean_logits(x), self.momentum)

    def extra_repr(self) -> str:
        return f"{tuple(self.value.shape)}, momentum={self.momentum}"


def check_center(output_dim: int, mode: str, momentum: float) -> None:
    if output_dim < 1:
        raise ValueError(f"output_dim: expected at least one prototype, got {output_dim}")
    if mode != "mean":
        raise ValueError(f"center_mode: expected 'mean', got {mode!r}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"center_momentum: expected 0 to 1, got {momentum}")


@torch.no_grad()
def mean_logits(x: Tensor | Sequence[Tensor]) -> Tensor:
    """The mean ``[K]`` of logits of equally many rows each; a tensor at a time, so that none is copied."""
    tensors = [x] if isinstance(x, Tensor) else list(x)
    return torch.stack([t.flatten(0, -2).mean(0, dtype=torch.float32) for t in tensors]).mean(0)


@torch.no_grad()
def move_center_(center: Tensor, mean: Tensor, momentum: float) -> None:
    """``center`` towards ``mean``, averaged over the processes, in place; not at all where that is not finite.

    A step whose logits are not finite has failed, and a centre that took part in it would never recover.
    """
    if world_size() > 1:
        mean = mean.clone()
        dist.all_reduce(mean)
        mean = mean / world_size()
    moved = center.lerp(mean.to(center.dtype).view(center.shape), 1 - momentum)
    center.copy_(torch.where(mean.isfinite().all(), moved, center))
