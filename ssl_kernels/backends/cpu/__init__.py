"""The C++ kernels of ``csrc/cpu``: blockwise, on as many threads as torch uses."""

from __future__ import annotations

from ssl_kernels.backends.cpu.across import attend_lse, cross_lse, cross_lse_backward, cross_softplus_mean
from ssl_kernels.backends.cpu.aligned import cosine, cosine_backward
from ssl_kernels.backends.cpu.averaging import average_
from ssl_kernels.backends.cpu.biased import biased_lse
from ssl_kernels.backends.cpu.distances import nearest, student_lse, student_lse_backward
from ssl_kernels.backends.cpu.log_distance import log_distance, log_distance_backward
from ssl_kernels.backends.cpu.native import why_not
from ssl_kernels.backends.cpu.pairwise import pair_softplus
from ssl_kernels.backends.cpu.prototypes import (
    prototype_cross_entropy,
    prototype_cross_entropy_backward,
    prototype_lse,
    prototype_room,
)
from ssl_kernels.backends.cpu.ring import enqueue_
from ssl_kernels.backends.cpu.views import (
    view_cross_entropy,
    view_cross_entropy_at_once,
    view_cross_entropy_backward,
)
from ssl_kernels.backends.cpu.within import self_lse, self_lse_backward, softplus_mean

__all__ = [
    "attend_lse",
    "average_",
    "biased_lse",
    "cosine",
    "cosine_backward",
    "cross_lse",
    "cross_lse_backward",
    "cross_softplus_mean",
    "enqueue_",
    "log_distance",
    "log_distance_backward",
    "nearest",
    "pair_softplus",
    "prototype_cross_entropy",
    "prototype_cross_entropy_backward",
    "prototype_lse",
    "prototype_room",
    "self_lse",
    "self_lse_backward",
    "softplus_mean",
    "student_lse",
    "student_lse_backward",
    "view_cross_entropy",
    "view_cross_entropy_at_once",
    "view_cross_entropy_backward",
    "why_not",
]

DEVICES = ("cpu",)
