r"""t-SimCNE (Böhm, Berens & Kobak 2022, https://arxiv.org/abs/2210.09879, section 4).

A map of images in the plane, learned like SimCLR. A plane is too narrow to learn in from the start, so there are three
stages: SimCLR with a wide output; a new last layer with two outputs, which learns alone, points now repelling by a
Cauchy kernel of their distance; then everything together, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods import config
from methods.batch import Batch
from methods.data import Data
from methods.encoders import Encoder
from methods.plane import measure_plane
from methods.processes import from_all, world_size
from methods.schedule import warmup_cosine
from ssl_kernels import NTXentLoss, TSimCNELoss

WIDE, LAST_LAYER, ALL = range(3)  # the stages


class TSimCNE(nn.Module):
    @dataclass(frozen=True)
    class Config(config.Config):
        """t-SimCNE: SimCLR that ends in a map, points attracting and repelling in the plane (Böhm et al. 2022)."""

        epochs: int = 1500
        """Passes over the training images in all three stages; the paper has 1000 + 50 + 450."""
        last_layer_epochs: int = 50
        """Those of the second stage: the last layer with its two outputs learns alone."""
        fine_tune_epochs: int = 450
        """Those of the third stage: everything learns for the map."""
        fine_tune_lr: float = 1e-3
        """Share of the learning rate in the third stage. This is the paper's, for SGD; AdamW wants more."""
        temperature: float = 0.5
        """tau of the first stage; distances in the plane have none."""
        hidden_dim: int = 1024
        """Width between the encoder and the last layer, which has 128 outputs in the first stage."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        late = config.last_layer_epochs + config.fine_tune_epochs
        if not 0 <= late < config.epochs:
            raise ValueError(f"epochs: expected more than the {late} of the two last stages, got {config.epochs}")
        self.config, self.stage = config, WIDE
        self.encoder = encoder
        self.hidden = nn.Sequential(nn.Linear(encoder.dim, config.hidden_dim), nn.ReLU())
        self.wide = nn.Linear(config.hidden_dim, 128)
        self.flat = nn.Linear(config.hidden_dim, 2)
        self.on_the_sphere = NTXentLoss(config.temperature, gather_distributed=world_size() > 1, backend=config.backend)
        self.in_the_plane = TSimCNELoss(backend=config.backend)

    def embed(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage != LAST_LAYER):
            hidden = self.hidden(self.encoder(images))
        return self.wide(hidden) if self.stage == WIDE else self.flat(hidden)

    def forward(self, batch: Batch) -> list[Tensor]:
        return list(self.embed(torch.cat(batch.views)).chunk(len(batch.views)))

    def loss(self, z: list[Tensor], batch: Batch) -> Tensor:
        if self.stage == WIDE:
            return self.on_the_sphere(*z)
        z = [from_all(points) for points in z]
        return torch.stack([self.in_the_plane(a, b) for a, b in combinations(z, 2)]).mean()

    def before_step(self, step: int, total: int, warmup: int) -> float:
        c = self.config
        left = c.last_layer_epochs + c.fine_tune_epochs, c.fine_tune_epochs, 0
        ends = [total - total * epochs // c.epochs for epochs in left]
        self.stage = next(stage for stage, end in enumerate(ends) if step < end)
        start = ends[self.stage - 1] if self.stage else 0
        return warmup_cosine(step - start, ends[self.stage] - start, warmup) * (1, 1, c.fine_tune_lr)[self.stage]

    def get_extra_state(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.stage = state["stage"]

    def measure(self, data: Data, folder: Path | None) -> dict[str, float]:
        return {} if self.stage == WIDE else measure_plane(self, data, folder)
