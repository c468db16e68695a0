"""Settings by name, each measured in docs/methods.md. A flag beside ``--recipe`` wins over what stands here."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # 5,000 images of 32x32 on two cores: four small views cost about as much as two large ones and teach more
    "cifar10-small-cpu": {
        "epochs": 15,
        "encoder": "small",
        "batch_size": 128,
        "lr": 4e-3,
        "temperature": 0.2,
        "views": 4,
        "view_size": 24,
        "crop": (0.25, 1.0),
        "jitter": 0.35,
    },
    # scikit-learn's 8x8 digits, half a minute on two cores: shifts and turns, no mirror images, no colours
    "digits": {
        "data": "digits",
        "epochs": 40,
        "encoder": "small",
        "width": 16,
        "batch_size": 128,
        "lr": 4e-3,
        "temperature": 0.5,
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
    },
}
