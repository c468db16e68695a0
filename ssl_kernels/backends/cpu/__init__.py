"""The C++ kernels of ``csrc/cpu``: blockwise, on as many threads as torch uses."""

from __future__ import annotations

from ssl_kernels.backends.cpu.aligned import cosine, cosine_backward
from ssl_kernels.backends.cpu.averaging import average_
from ssl_kernels.backends.cpu.native import why_not
from ssl_kernels.backends.cpu.ring import enqueue_
from ssl_kernels.backends.cpu.within import self_lse, self_lse_backward, softplus_mean

__all__ = [
    "average_",
    "cosine",
    "cosine_backward",
    "enqueue_",
    "self_lse",
    "self_lse_backward",
    "softplus_mean",
    "why_not",
]

DEVICES = ("cpu",)
