"""Settings by name, for each method that has some. A flag beside ``--recipe`` wins over what stands here.

The recipes for CPUs are measured in docs/methods.md; the others, not measured here, are the papers' settings, or what
has become usual for the data set since.
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
# The same images for a student and its teacher
_CIFAR10_SMALL_CROPS: dict[str, Any] = _CIFAR10_SMALL | {
    "batch_size": 64,
    "views": 2,
    "local_views": 4,
    "crop": (0.3, 1.0),
    "local_crop": (0.15, 0.5),
    "jitter": 0.5,
    "ema_momentum": 0.99,
    "hidden_dim": 512,
    "bottleneck_dim": 128,
    "prototypes": 1024,
    "head_norm": True,
}
# For a small transformer, with the weight decay that its papers have
_CIFAR10_SMALL_VIT = _CIFAR10_SMALL_CROPS | {"epochs": 10, "encoder": "vit", "width": 16, "lr": 1e-3, "local_size": 12}
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

_PLAIN_SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}
# All of CIFAR-10 on one GPU: what the authors of MoCo and SimSiam published for it, and what is usual for the others
_CIFAR10: dict[str, Any] = {
    "epochs": 200,
    "encoder": "resnet18-cifar",
    "batch_size": 512,
    "precision": "bf16",
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "warmup_epochs": 10,
    "crop": (0.2, 1.0),
    "knn_every": 5,
    "knn_k": 200,
    "knn_temperature": 0.1,
}
# A folder of photographs on machines with many GPUs, as the papers have it. A recipe's batch is that of all processes
# together.
_PHOTOGRAPHS: dict[str, Any] = {
    "epochs": 100,
    "encoder": "torchvision:resnet50",
    "image_size": 256,
    "view_size": 224,
    "precision": "bf16",
    "blur": 0.5,
    "knn_every": 10,
    "knn_k": 200,
    "knn_temperature": 0.1,
}
_LARGE_BATCH = _PHOTOGRAPHS | {"batch_size": 4096, "optimizer": "lars", "warmup_epochs": 10, "crop": (0.08, 1.0)}
_SMALL_BATCH = _PHOTOGRAPHS | {"optimizer": "sgd", "weight_decay": 1e-4, "warmup_epochs": 0}
# What BYOL, MoCo v3 and DINO do to one of the views and not to the other
_ASYMMETRIC = {"blur": 1.0, "second_blur": 0.1, "solarize": 0.2}
_SMALL_VIT = (
    _PHOTOGRAPHS
    | _ASYMMETRIC
    | {"encoder": "timm:vit_small_patch16_224", "patch_size": 16, "warmup_epochs": 10, "clip_gradient": 3.0}
    | {"local_views": 8, "local_size": 96, "local_blur": 0.5, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30}
)
# 3,600 drawings with captions of a few words, on two cores: a small transformer that begins as a bag of words, and
# words dropped so that captions are not learned by heart
_PAIRS_SMALL: dict[str, Any] = {
    "image_size": 64,
    "view_size": 48,
    "crop": (0.4, 1.0),
    "encoder": "small",
    "epochs": 30,
    "batch_size": 128,
    "weight_decay": 0.1,
    "projection_dim": 128,
    "text_width": 128,
    "text_layers": 2,
    "text_heads": 4,
    "text_pooling": "mean",
    "text_dropout": 0.1,
    "word_dropout": 0.2,
    "tokenizer": "bpe",
    "vocab_size": 1000,
    "context": 32,
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10-small-cpu": {
        "simclr": _CIFAR10_SMALL | {"temperature": 0.2},
        "moco": _CIFAR10_SMALL
        | {"temperature": 0.2, "symmetric": True, "queue_size": 2048, "ema_momentum": 0.99, "bn_groups": 4}
        | {"head_norm": True},
        "mocov3": _CIFAR10_SMALL | {"temperature": 0.2, "hidden_dim": 512, "projection_dim": 128},
        "byol": _CIFAR10_SMALL
        | _PLAIN_SGD
        | {"epochs": 30, "batch_size": 64, "hidden_dim": 512, "projection_dim": 128, "projection_norm": True}
        | {"ema_momentum": 0.95},
        "dino": _CIFAR10_SMALL_CROPS | _PLAIN_SGD | {"epochs": 30, "local_size": 16, "final_weight_decay": 5e-4},
        "supcon": _CIFAR10_SMALL | {"epochs": 20, "batch_size": 64, "lr": 3e-3, "temperature": 0.1, "head_norm": True},
        "tsimcne": _CIFAR10_SMALL
        | {
            "temperature": 0.2,
            "hidden_dim": 512,
            "epochs": 105,
            "last_layer_epochs": 3,
            "fine_tune_epochs": 72,
            "fine_tune_lr": 0.4,
            "jitter": 0.6,  # where colours are less disturbed, they are what a plane has room for
        },
    },
    "cifar10-small-vit": {"dino": _CIFAR10_SMALL_VIT, "dinov2": _CIFAR10_SMALL_VIT},
    "cifar10-resnet18": {
        "simclr": _CIFAR10 | {"lr": 0.24, "temperature": 0.2},
        "moco": _CIFAR10
        | {"lr": 0.06, "warmup_epochs": 0, "temperature": 0.1, "queue_size": 4096, "ema_momentum": 0.99}
        | {"symmetric": True, "bn_groups": 8},
        "byol": _CIFAR10 | {"lr": 0.24, "hidden_dim": 1024, "ema_momentum": 0.99},
        "simsiam": _CIFAR10 | {"epochs": 800, "lr": 0.06, "warmup_epochs": 0},
        "supcon": _CIFAR10 | {"epochs": 1000, "batch_size": 1024, "lr": 0.5, "weight_decay": 1e-4, "temperature": 0.1},
    },
    "cifar10-large-batch": {
        "simclr": _CIFAR10
        | {"batch_size": 4096, "optimizer": "lars", "lr": 4.8, "weight_decay": 1e-6, "temperature": 0.5},
    },
    "imagenet-resnet50": {
        "simclr": _LARGE_BATCH | {"lr": 4.8, "weight_decay": 1e-6, "temperature": 0.1, "jitter": 1.0},
        "moco": _SMALL_BATCH | {"epochs": 200, "batch_size": 256, "lr": 0.03},
        "mocov3": _LARGE_BATCH | _ASYMMETRIC | {"lr": 4.8, "weight_decay": 1.5e-6, "crop": (0.2, 1.0)},
        "byol": _LARGE_BATCH | _ASYMMETRIC | {"epochs": 1000, "lr": 3.2, "weight_decay": 1.5e-6},
        "simsiam": _SMALL_BATCH | {"batch_size": 512, "lr": 0.1},
    },
    "imagenet-vit-small": {
        "dino": _SMALL_VIT | {"batch_size": 1024, "lr": 2e-3, "crop": (0.4, 1.0), "prototypes": 65536},
        "dinov2": _SMALL_VIT
        | {"batch_size": 2048, "lr": 5.66e-3, "crop": (0.32, 1.0), "local_crop": (0.05, 0.32), "prototypes": 131072},
    },
    "pairs-small-cpu": {"clip": _PAIRS_SMALL, "siglip": _PAIRS_SMALL},
    "digits": {
        "simclr": _DIGITS | {"temperature": 0.5},
        "byol": _DIGITS | _PLAIN_SGD | {"hidden_dim": 256, "projection_dim": 64, "ema_momentum": 0.95},
        "simsiam": _DIGITS | _PLAIN_SGD | {"projection_dim": 256, "bottleneck_dim": 64},
        "dino": _DIGITS
        | _PLAIN_SGD
        | {"final_weight_decay": 5e-4, "hidden_dim": 256, "bottleneck_dim": 64, "head_norm": True, "prototypes": 256}
        | {"ema_momentum": 0.95, "local_views": 2, "local_size": 6, "local_crop": (0.3, 0.7)},
    },
}
