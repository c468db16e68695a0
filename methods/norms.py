"""Whose statistics batch normalisation takes: those of all processes, of this one, or of groups of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.processes import from_all, world_size


class SplitBatchNorm(_BatchNorm):
    """Each of ``groups`` parts of the batch by its own statistics: what so many machines do, on one of them."""

    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(SplitBatchNorm, self).forward(part) for part in x.chunk(self.groups)])

    def _check_input_dim(self, x: Tensor) -> None:
        """Of any number of dimensions."""


class GatheredBatchNorm(_BatchNorm):
    """The batch of all processes by its common statistics, on a CPU, for which ``nn.SyncBatchNorm`` does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1 if d in dims else -1 for d in range(x.dim())]
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _mean_over_processes(rows.mean(dims))
        centred = rows - mean.view(shape)
        variance = _mean_over_processes(centred.square().mean(dims))
        if self.track_running_stats:
            n = world_size() * x.numel() // x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / max(n - 1, 1), self.momentum)
                self.num_batches_tracked.add_(1)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Of any number of dimensions."""


def _mean_over_processes(x: Tensor) -> Tensor:
    """With its gradient: what every process does with the mean comes back to all of them."""
    return from_all(x[None]).mean(0)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with statistics of all processes; every process must have as many samples."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return _replaced(model, lambda old: GatheredBatchNorm(old.num_features, old.eps, old.momentum, old.affine))


def split(model: nn.Module, groups: int) -> nn.Module:
    """The model with statistics of ``groups`` parts of each batch."""

    def make(old: _BatchNorm) -> SplitBatchNorm:
        new = SplitBatchNorm(old.num_features, old.eps, old.momentum, old.affine)
        new.groups = groups
        return new

    return _replaced(model, make)


def _replaced(model: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            new = make(child).to(child.running_mean)  # its device and dtype
            new.load_state_dict(child.state_dict())
            for mine, its in zip(new.parameters(), child.parameters(), strict=True):
                mine.requires_grad_(its.requires_grad)
            setattr(model, name, new)
        else:
            _replaced(child, make)
    return model


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, normalisation in training mode leaves the running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
