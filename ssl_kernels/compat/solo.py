"""solo-learn's loss functions: ``from ssl_kernels.compat.solo import simclr_loss_func``.

As there, ``simclr_loss_func`` gathers the rows of all processes by itself, and the MoCo losses take rows as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels.compat.momentum import MomentumUpdater, initialize_momentum_params
from ssl_kernels.losses import byol_loss, info_nce_loss, negative_cosine_similarity, nt_xent_loss
from ssl_kernels.losses.classes import check_labels, dense_classes, positives_and_negatives
from ssl_kernels.losses.gather import gather_rows, world_size
from ssl_kernels.losses.sphere import unit_rows
from ssl_kernels.losses.temperature import as_factor, as_scale

__all__ = [
    "MomentumUpdater",
    "byol_loss_func",
    "initialize_momentum_params",
    "moco_loss_func",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "nnclr_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss: ``simclr_loss_func(z, indexes)`` of the repository, ``simclr_loss_func(z1, z2)`` of the package.

    Args:
        z: rows of any number of views ``[V N, D]`` (first form), or the first view ``[N, D]`` (second).
        indexes: the sample, or the class, of every row, ``[V N]`` integers; or the second view ``[N, D]``. Of several
            positives the shares add up inside the logarithm.
        temperature: tau.

    Returns:
        The mean over the rows of this process; rows without any positive are left out (there, they make it infinite).
    """
    if isinstance(indexes, Tensor) and indexes.is_floating_point():
        return nt_xent_loss(z, indexes, temperature, gather_distributed=True)
    check_labels("indexes", indexes, z)
    scale, multiplier = as_scale(temperature, z)
    size, n = world_size(), len(z)
    everyone = (gather_rows(z, size), gather_rows(indexes, size)) if size > 1 else (z, indexes)
    own = slice(torch.distributed.get_rank() * n, (torch.distributed.get_rank() + 1) * n) if size > 1 else slice(n)
    z, classes = unit_rows([everyone[0]]), dense_classes(everyone[1])
    pos, neg = (t[own] for t in positives_and_negatives(z, as_factor(scale, multiplier, z), classes))
    asks = pos > -torch.inf
    less = torch.where(asks, neg - pos, -torch.inf)
    return F.softplus(less, 1.0, 40.0).sum() / asks.sum().clamp_min(1)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``2 - 2 cos(p, z)``, no gradient to ``z``. There, ``simplified`` is another way to the same value."""
    return byol_loss(p, z)


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``-cos(p, z)``, no gradient to ``z``. There, ``simplified`` is another way to the same value."""
    return negative_cosine_similarity(p, z.detach())


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss with a queue ``[D, K]``; everything is taken as it is, expected on the unit sphere."""
    return info_nce_loss(query, key, queue.T, temperature, normalize=False)


moco_loss_func = mocov2plus_loss_func  # as the package calls it


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo v3's, one direction: InfoNCE against the keys of all processes, times ``2 temperature``."""
    keys, offset = key, 0
    if world_size() > 1:
        keys, offset = gather_rows(key, world_size()), torch.distributed.get_rank() * len(key)
    return 2 * temperature * info_nce_loss(query, keys, None, temperature, offset=offset)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """NNCLR's: InfoNCE of neighbours ``nn`` against predictions ``p``, those of all processes."""
    others, offset = p, 0
    if world_size() > 1:
        others, offset = gather_rows(p, world_size()), torch.distributed.get_rank() * len(p)
    return info_nce_loss(nn, others, None, temperature, offset=offset)
