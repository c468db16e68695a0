"""Products with prototypes: torch's, a block at a time; the gradient of a block by the kernel for given logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ssl_kernels.backends import prototypes
from ssl_kernels.backends.prototypes import prototype_cross_entropy, prototype_lse, prototype_room

__all__ = ["prototype_cross_entropy", "prototype_cross_entropy_backward", "prototype_lse", "prototype_room"]


def prototype_cross_entropy_backward(view_cross_entropy_backward: Callable[..., tuple], dvalue: Tensor, *call, **room):
    """With the ``view_cross_entropy_backward`` of a backend."""

    def gradient(dvalue, s, t, *rest, to) -> Tensor:  # in memory of its own
        return view_cross_entropy_backward(dvalue, [s], [t], *rest, True, False)[0][0]

    return prototypes.prototype_cross_entropy_backward(gradient, dvalue, *call, **room)
