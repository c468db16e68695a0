"""Small data and small runs: every test here trains for a second at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# A machine that only has torch runs the tests of the kernels; these need what `python -m methods` needs
for package in ("kornia", "tyro", "tqdm", "sklearn", "PIL"):
    try:
        __import__(package)
    except ModuleNotFoundError:
        collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """96 colour images of 12 x 12 in three classes that differ in colour and direction of a stripe pattern."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    ramp = np.linspace(0, 2 * np.pi, 12)
    waves = np.stack([np.tile(np.sin(3 * ramp), (12, 1)), np.tile(np.sin(3 * ramp)[:, None], (1, 12)), np.eye(12)])
    images = 128 + 60 * waves[labels][..., None] + rng.normal(0, 25, (96, 12, 12, 3))
    images[np.arange(96), :, :, labels] += 40
    path = tmp_path / "stripes.npz"
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return path


@pytest.fixture
def pairs(npz: Path, tmp_path: Path) -> Path:
    """The same images as files, with captions that say which are which, and their classes as labels."""
    from PIL import Image

    arrays = np.load(npz)
    folder = tmp_path / "pairs"
    folder.mkdir()
    words = ("red upright stripes", "green level stripes", "blue diagonal line")
    lines = ["file\tcaption\tlabel"]
    for k, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
        Image.fromarray(image).save(folder / f"{k}.png")
        lines.append(f"{k}.png\t{words[label]} number {k}\t{words[label]}")
    path = folder / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def settings(npz: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Keyword arguments of a Config for a run of a second."""

    def make(**changes: Any) -> dict[str, Any]:
        small = {
            "data": str(npz),
            "out": tmp_path / "run",
            "epochs": 3,
            "batch_size": 32,
            "width": 8,
            "lr": 1e-2,
            "log_every": 1,
            "knn_k": 5,
            "threads": 1,
            "tensorboard": False,
            "progress": False,
            "linear_probe": False,
        }
        return small | changes

    return make


@pytest.fixture
def settings_of(settings: Callable, pairs: Path) -> Callable[..., dict[str, Any]]:
    """``settings_of(name, **changes)``: the same for a method by name, with captions for those that need them."""
    from methods.__main__ import METHODS

    small = {
        "hidden_dim": 32,
        "projection_dim": 16,
        "bottleneck_dim": 8,
        "queue_size": 128,
        "prototypes": 64,
        "local_views": 2,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
        "tokenizer": "bpe",
        "vocab_size": 300,
        "context": 16,
        "hard_negatives": ("order", "shuffle", "attribute"),
        "last_layer_epochs": 1,
        "fine_tune_epochs": 1,
    }

    def make(name: str, **changes: Any) -> dict[str, Any]:
        method = METHODS[name]
        known = {key: value for key, value in small.items() if key in method.Config.__dataclass_fields__}
        data = {"data": str(pairs)} if "captions" in getattr(method, "needs", ()) else {}
        return settings(**data | known | changes)

    return make
