"""Products with prototypes: torch's, a block at a time, and the gradient of a block in its own place."""

from __future__ import annotations

from functools import partial

from ssl_kernels.backends import prototypes
from ssl_kernels.backends.cpu.native import ask_for_pages
from ssl_kernels.backends.cpu.views import gradient_of_block
from ssl_kernels.backends.prototypes import prototype_cross_entropy, prototype_lse, prototype_room

__all__ = ["prototype_cross_entropy", "prototype_cross_entropy_backward", "prototype_lse", "prototype_room"]

prototype_cross_entropy_backward = partial(
    prototypes.prototype_cross_entropy_backward, gradient_of_block, before_writing=ask_for_pages
)
