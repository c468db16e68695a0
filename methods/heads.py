"""Projection heads: small networks between the encoder and the loss, thrown away after training."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn


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
