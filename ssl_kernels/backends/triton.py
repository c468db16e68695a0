"""Triton kernels for NVIDIA GPUs from sm_80 on; on the CPU only under Triton's interpreter, for tests."""

from __future__ import annotations

import importlib.util
import os

import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = ("cuda", "cpu") if _INTERPRETED else ("cuda",)


def why_not() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _INTERPRETED:
        return None
    if torch.version.hip is not None:
        return "this torch is built for ROCm, the kernels are for CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU is sm_{major}{minor}, the kernels need sm_80 or newer"
    return None


if why_not() is None:
    from functools import partial

    from ssl_kernels.backends.gpu import across, pairwise, prototypes, within
    from ssl_kernels.backends.gpu import distances as points
    from ssl_kernels.backends.gpu import views as of_views
    from ssl_kernels.backends.triton_kernels import distances, kernels, views
    from ssl_kernels.backends.triton_kernels.aligned import cosine, cosine_backward
    from ssl_kernels.backends.triton_kernels.averaging import average_
    from ssl_kernels.backends.triton_kernels.biased import biased_lse
    from ssl_kernels.backends.triton_kernels.neighbours import nearest
    from ssl_kernels.backends.triton_kernels.ring import enqueue_

    self_lse = partial(within.self_lse, kernels)
    self_lse_backward = partial(within.self_lse_backward, kernels)
    cross_lse = partial(across.cross_lse, kernels)
    cross_lse_backward = partial(across.cross_lse_backward, kernels)
    attend_lse = partial(across.attend_lse, kernels)
    pair_softplus = partial(pairwise.pair_softplus, kernels)
    student_lse = partial(points.student_lse, distances)
    student_lse_backward = partial(points.student_lse_backward, distances)
    view_cross_entropy = partial(of_views.view_cross_entropy, views)
    view_cross_entropy_backward = partial(of_views.view_cross_entropy_backward, views)
    prototype_cross_entropy, prototype_lse = prototypes.prototype_cross_entropy, prototypes.prototype_lse
    prototype_room = prototypes.prototype_room
    prototype_cross_entropy_backward = partial(prototypes.prototype_cross_entropy_backward, view_cross_entropy_backward)

    __all__ = [
        "DEVICES",
        "attend_lse",
        "average_",
        "biased_lse",
        "cosine",
        "cosine_backward",
        "cross_lse",
        "cross_lse_backward",
        "enqueue_",
        "nearest",
        "pair_softplus",
        "prototype_cross_entropy",
        "prototype_cross_entropy_backward",
        "prototype_lse",
        "prototype_room",
        "self_lse",
        "self_lse_backward",
        "student_lse",
        "student_lse_backward",
        "view_cross_entropy",
        "view_cross_entropy_backward",
        "why_not",
    ]
