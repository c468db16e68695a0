"""What is measured of a loss: a problem of any size, and everything its users could have used to solve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_kernels.losses import SPECS
from ssl_kernels.losses.spec import LossSpec

Loss = Callable[..., Tensor]

EAGER = "eager"  # what ratios refer to


@dataclass(frozen=True)
class Problem:
    """One loss in one setting.

    Args:
        loss: its name in ``SPECS``.
        rivals: other ways to compute it, called with the same inputs, among them ``eager``, as most users write it.
            The rest are what an expert might try. Default: the loss's reference.
        compiled: those that are tried under ``torch.compile`` too.
        compiled_at: the numbers of samples at which they are; compiling takes up to half a minute a size and dtype.
        sizes: ``(n, d)`` of the table; ``quick`` those for a look.
        inputs: ``inputs(n, d, dtype=, device=, generator=)``; default: the loss's own.
        features, parameters: which of the inputs ask for a gradient (parameters, made tensors); default: the features.
        entries: how many entries the whole matrix has; default: ``2n x 2n``, of two views.
        gpu: the sizes of the table on a GPU.
        units, exponentials: what a kernel that never stores the matrix needs at least, forward, and forward + backward:
            products of ``entries x d``, and exponentials of ``entries``. Default: a symmetric matrix's.
        exact: what checks large problems in float64, in memory that does not grow with the matrix.
        synchronise: rivals that ask the device for a number: no CUDA graph holds them.
    """

    loss: str
    rivals: Mapping[str, Loss] = field(default_factory=dict)
    compiled: tuple[str, ...] = (EAGER,)
    compiled_at: tuple[int, ...] = (256, 4096)
    sizes: tuple[tuple[int, int], ...] = ((256, 128), (1024, 128), (4096, 128))
    quick: tuple[tuple[int, int], ...] = ((256, 128),)
    inputs: Callable[..., dict[str, Any]] | None = None
    features: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()
    entries: Callable[[int], int] = lambda n: 4 * n * n
    gpu: tuple[tuple[int, int], ...] = ((4096, 128), (16384, 128))
    units: tuple[float, float] = (0.5, 2.0)
    exponentials: tuple[float, float] = (0.5, 1.0)
    exact: Loss | None = None
    synchronise: tuple[str, ...] = ()

    @property
    def spec(self) -> LossSpec:
        return SPECS[self.loss]

    @property
    def asking(self) -> tuple[str, ...]:
        return (self.spec.features if self.features is None else self.features) + self.parameters

    def draw(self, n: int, d: int, dtype: torch.dtype, seed: int, device: str = "cpu") -> dict[str, Any]:
        """Fresh inputs, those that do asking for a gradient."""
        generator = torch.Generator(device).manual_seed(seed)
        drawn = (self.inputs or self.spec.inputs)(n, d, dtype=dtype, device=device, generator=generator)
        for name in self.parameters:
            drawn[name] = torch.tensor(float(drawn[name]), device=device)
        for name in self.asking:
            drawn[name].requires_grad_()
        return drawn
