"""The CUDA C++ kernels of ``csrc/cuda``, for GPUs from sm_80 on; on the CPU only under their emulation, for tests."""

from __future__ import annotations

from ssl_kernels.backends.cuda.native import EMULATED, why_not

DEVICES = ("cuda", "cpu") if EMULATED else ("cuda",)

if why_not() is None:
    from functools import partial

    from ssl_kernels.backends.cuda import distances, kernels, views
    from ssl_kernels.backends.cuda.aligned import cosine, cosine_backward
    from ssl_kernels.backends.cuda.averaging import average_
    from ssl_kernels.backends.cuda.biased import biased_lse
    from ssl_kernels.backends.cuda.neighbours import nearest
    from ssl_kernels.backends.cuda.ring import enqueue_
    from ssl_kernels.backends.gpu import across, pairwise, prototypes, within
    from ssl_kernels.backends.gpu import distances as points
    from ssl_kernels.backends.gpu import views as of_views

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
