"""The definition, written plainly in PyTorch: it stores the whole matrix and serves every device.

Sums run in float32 for half precision and in the input's own precision otherwise. Tests compare the other backends
with this one in float64; users get it, with a warning, where nothing faster is available.
"""

from ssl_kernels.backends.reference.across import attend_lse, cross_lse, cross_lse_backward, pair_softplus
from ssl_kernels.backends.reference.aligned import cosine, cosine_backward
from ssl_kernels.backends.reference.averaging import average_
from ssl_kernels.backends.reference.biased import biased_lse
from ssl_kernels.backends.reference.distances import nearest, student_lse, student_lse_backward
from ssl_kernels.backends.reference.log_distance import log_distance, log_distance_backward
from ssl_kernels.backends.reference.prototypes import (
    prototype_cross_entropy,
    prototype_cross_entropy_backward,
    prototype_lse,
)
from ssl_kernels.backends.reference.ring import enqueue_
from ssl_kernels.backends.reference.views import view_cross_entropy, view_cross_entropy_backward
from ssl_kernels.backends.reference.within import self_lse, self_lse_backward

__all__ = [
    "attend_lse",
    "average_",
    "biased_lse",
    "cosine",
    "cosine_backward",
    "cross_lse",
    "cross_lse_backward",
    "enqueue_",
    "log_distance",
    "log_distance_backward",
    "nearest",
    "pair_softplus",
    "prototype_cross_entropy",
    "prototype_cross_entropy_backward",
    "prototype_lse",
    "self_lse",
    "self_lse_backward",
    "student_lse",
    "student_lse_backward",
    "view_cross_entropy",
    "view_cross_entropy_backward",
]

DEVICES = ("cpu", "cuda", "mps", "xpu")


def why_not() -> str | None:
    return None
