"""The waist's functions for GPUs, from the launches that a backend brings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ssl_kernels.backends.gpu import across, distances, pairwise, prototypes, views, within
from ssl_kernels.backends.reference.log_distance import log_distance, log_distance_backward


def operations(package: str) -> dict[str, Callable[..., Any]]:
    """By name; ``package`` has the modules of launches, which ask for a compiler or an extension."""

    def of(name: str) -> Any:
        return import_module(f"{package}.{name}")

    kernels, points, of_views = of("kernels"), of("distances"), of("views")
    view_cross_entropy_backward = partial(views.view_cross_entropy_backward, of_views)
    return {
        "attend_lse": partial(across.attend_lse, kernels),
        "average_": of("averaging").average_,
        "biased_lse": of("biased").biased_lse,
        "cosine": of("aligned").cosine,
        "cosine_backward": of("aligned").cosine_backward,
        "cross_lse": partial(across.cross_lse, kernels),
        "cross_lse_backward": partial(across.cross_lse_backward, kernels),
        "enqueue_": of("ring").enqueue_,
        "log_distance": log_distance,
        "log_distance_backward": log_distance_backward,
        "nearest": of("neighbours").nearest,
        "pair_softplus": partial(pairwise.pair_softplus, kernels),
        "prototype_cross_entropy": prototypes.prototype_cross_entropy,
        "prototype_cross_entropy_backward": partial(
            prototypes.prototype_cross_entropy_backward, view_cross_entropy_backward
        ),
        "prototype_lse": prototypes.prototype_lse,
        "prototype_room": prototypes.prototype_room,
        "self_lse": partial(within.self_lse, kernels),
        "self_lse_backward": partial(within.self_lse_backward, kernels),
        "student_lse": partial(distances.student_lse, points),
        "student_lse_backward": partial(distances.student_lse_backward, points),
        "view_cross_entropy": partial(views.view_cross_entropy, of_views),
        "view_cross_entropy_backward": view_cross_entropy_backward,
    }
