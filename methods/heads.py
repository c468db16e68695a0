"""Projection heads: small networks between the encoder and the loss, thrown away after training."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int, batch_norm: bool = True, last: Literal["linear", "norm"] = "linear") -> nn.Sequential:
    """Linear - BN - ReLU, ..., Linear, between ``widths``; without ``batch_norm``, Linear - ReLU, ..., Linear.

    ``last="norm"`` ends it with a BN that has no scale and shift of its own, as in SimSiam and MoCo v3.
    """
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(widths)):
        inner = k < len(widths) - 2
        normed = batch_norm if inner else last == "norm"
        layers.append(nn.Linear(a, b, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(b, affine=inner))
        if inner:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class SimCLRProjectionHead(nn.Sequential):
    """Linear - BN - ReLU, ..., Linear - BN: no biases, since BN has its own, and BN after the last layer too.

    Args:
        input_dim: width of the encoder's features.
        hidden_dim: width between the layers; the paper has the encoder's.
        output_dim: width of the projection.
        num_layers: linear layers, 2 in the paper's first version and 3 in SimCLR v2.
        batch_norm: without it, the linear layers have biases.
    """

    def __init__(
        self,
        input_dim: int = 2048,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        num_layers: int = 2,
        batch_norm: bool = True,
    ) -> None:
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise(widths)):
            if k:
                layers.append(nn.ReLU())
            layers.append(nn.Linear(a, b, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(b))
        super().__init__(*layers)


def keep_scale(module: nn.Module) -> None:
    """Linear layers that give outputs as large as their inputs, and no constant: what is constant hides the rest."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DINOHead(nn.Module):
    """DINO's head up to its last layer: an MLP with GELU to features on the unit sphere.

    The last layer's weight, whose rows have a norm of 1, is ``prototypes``: the logits are ``features @ prototypes.T``.

    Args:
        input_dim, hidden_dim, bottleneck_dim: width of the encoder's features, of two hidden layers, of the features.
        prototypes: how many, K.
        batch_norm: normalise the hidden layers.
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        if prototypes < 1:
            raise ValueError(f"prototypes: expected at least 1, got {prototypes}")
        layers: list[nn.Module] = []
        for width in (input_dim, hidden_dim):
            layers.append(nn.Linear(width, hidden_dim, bias=not batch_norm))
            layers += [nn.BatchNorm1d(hidden_dim), nn.GELU()] if batch_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.mlp.apply(keep_scale)
        self.directions = nn.Parameter(torch.randn(prototypes, bottleneck_dim))

    @property
    def prototypes(self) -> Tensor:
        return F.normalize(self.directions, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.mlp(x), dim=-1)
