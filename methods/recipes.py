"""Settings by name, for each method that has some. A flag beside ``--recipe`` wins over what stands here.

The recipes for CPUs are measured in docs/methods.md; the others are the papers' settings, or those that are usual for
the data set since.
"""

from __future__ import annotations

from typing import Any

# 5,000 images of 32x32 on two cores: four small views cost about as much as two large ones and teach more
_CIFAR10_SMALL: dict[str, Any] = {
    "epochs": 15,
    "encoder": "small",
    "batch_size": 128,
    "lr": 4e-3,
    "views": 4,
    "view_size": 24,
    "crop": (0.25, 1.0),
    "jitter": 0.35,
}
# scikit-learn's 8x8 digits, half a minute on two cores: shifts and turns, no mirror images, no colours
_DIGITS: dict[str, Any] = {
    "data": "digits",
    "epochs": 40,
    "encoder": "small",
    "width": 16,
    "batch_size": 128,
    "lr": 4e-3,
    "crop": (1.0, 1.0),
    "flip": 0.0,
    "jitter": 0.5,
    "grey": 0.0,
    "rotate": 15.0,
    "translate": 0.12,
    "shear": 15.0,
    "zoom": (0.8, 1.2),
    "knn_every": 4,
    "threads": 1,  # tensors too small to share: a second thread gains little and spins where cores are busy
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10-small-cpu": {
        "simclr": _CIFAR10_SMALL | {"temperature": 0.2},
        "moco": _CIFAR10_SMALL
        | {"temperature": 0.2, "symmetric": True, "queue_size": 2048, "ema_momentum": 0.99, "bn_groups": 4},
        "byol": _CIFAR10_SMALL | {"hidden_dim": 512, "projection_dim": 128, "ema_momentum": 0.98},
        "supcon": _CIFAR10_SMALL | {"temperature": 0.1},
    },
    "digits": {"simclr": _DIGITS | {"temperature": 0.5}},
}
