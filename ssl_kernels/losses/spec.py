"""What tests and benchmarks need to know of a loss. Each loss file ends with one of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LossSpec:
    """One loss: how to call it, what it must equal, and inputs of any size to do so with.

    Args:
        name: as in ``{name}_loss``, ``{name}_reference``.
        fused: the function users call; takes the inputs as keywords, and ``backend=``.
        reference: the same in plain PyTorch, differentiable any number of times, storing whatever it likes.
        module: makes the ``nn.Module``; called with the features (and labels) positionally.
        inputs: ``inputs(n, d, dtype=, device=, generator=)`` draws the keyword arguments of both functions.
        features: which of the inputs carry the large gradients. What is neither feature nor parameter (labels, a
            queue) gets none.
        parameters: which of the inputs may be 0-d tensors with a gradient. ``temperature``, or ``logit_scale``, its
            inverse, takes every value of the tests' table; others keep what ``inputs`` gave them.
        trained: ``trained(n, d, ...)`` draws inputs as a trained model makes them (positives aligned).
        temperatures: where the loss is not defined for every temperature but zero: those to try. Where it has none to
            learn: what it divides its logits by.
        smallest: the fewest samples it is defined for.
        narrowest: the least width at which its gradient is more than rounding.
        largest: the most ``n * n * d`` to try, where the reference stores more than a matrix.
        cross_entropy: it is a mean of ``-log`` of shares; then its gradients vanish with it, and keep their digits.
        variants: the same loss called in other ways (with a queue, with labels), each tested as a loss of its own.
    """

    name: str
    fused: Callable[..., Any]
    reference: Callable[..., Any]
    module: Callable[..., nn.Module]
    inputs: Callable[..., dict[str, Any]]
    trained: Callable[..., dict[str, Any]]
    features: tuple[str, ...]
    parameters: tuple[str, ...] = field(default=())
    temperatures: tuple[float, ...] | None = None
    smallest: int = 1
    narrowest: int = 1
    largest: float = math.inf
    cross_entropy: bool = True
    variants: tuple[LossSpec, ...] = ()

    @property
    def asking(self) -> tuple[str, ...]:
        """The inputs that get a gradient."""
        return self.features + self.parameters
