"""Projection heads: small networks between the encoder and the loss, thrown away after training."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


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
