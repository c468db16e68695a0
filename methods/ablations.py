"""What SimCLR owes to each of its augmentations and to the temperature: short runs that differ in one thing each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.pictures import pyplot
from methods.recipes import RECIPES
from methods.simclr import SimCLR
from methods.train import train

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "no blur": {"blur": 0.0},
    "no colour jitter": {"jitter": 0.0},
    "no colour jitter, no grey": {"jitter": 0.0, "grey": 0.0},
    "no crop": {"crop": (1.0, 1.0)},
}
TEMPERATURES = (0.05, 0.1, 0.5, 1.0)  # beside the recipe's
RECIPE = RECIPES["cifar10-small-cpu"]["simclr"]
COLOUR = "#1f6fb4"


@dataclass(frozen=True)
class Ablations:
    """SimCLR without each of its augmentations, and at other temperatures: nine short runs, tables and a picture."""

    data: str
    """As in training; made for the first 500 images of each class of CIFAR-10."""
    out: Path = Path("runs/ablations")
    """Folder for the runs; those that are finished there are not repeated."""
    epochs: int = 5
    """Of each run."""
    threads: int = 0
    """CPU threads; 0: as torch decides."""


def ablations(settings: Ablations) -> None:
    # The recipe has no blur, as usual for images so small: here it is one of the things to leave out
    without = {name: _knn(settings, name, {"blur": 0.5} | change) for name, change in AUGMENTATIONS.items()}
    at = {tau: _knn(settings, f"tau {tau:g}", {"temperature": tau}) for tau in TEMPERATURES}
    at = dict(sorted((at | {RECIPE["temperature"]: without["no blur"]}).items()))
    for title, rows in (("augmentations", without), ("temperature", at)):
        print(f"| {title} | kNN |\n|---|---|")
        print("\n".join(f"| {name} | {knn:.1f} |" for name, knn in rows.items()), end="\n\n")
    picture(settings.out / "ablations.svg", without, at)
    print(f"picture: {settings.out / 'ablations.svg'}")


def _knn(settings: Ablations, name: str, change: dict[str, Any]) -> float:
    """kNN accuracy of two views of 24 x 24, and otherwise the recipe for CPUs, after a few epochs."""
    folder = settings.out / name.replace(",", "").replace(" ", "-")
    if not (folder / "results.json").exists():
        recipe = RECIPE | {"views": 2, "knn_every": 0, "linear_probe": False} | change
        more = {"epochs": settings.epochs, "threads": settings.threads, "out": folder, "resume": True}
        train(SimCLR, SimCLR.Config(**recipe | more, data=settings.data))
    return json.loads((folder / "results.json").read_text())["knn"]


def picture(path: Path, without: dict[str, float], at: dict[float, float]) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    bars = left.barh(list(without), list(without.values()), color=COLOUR)
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.invert_yaxis()
    left.set(xlabel="kNN accuracy, %", title="SimCLR without an augmentation", xlim=(0, 60))
    right.plot(list(at), list(at.values()), "o-", color=COLOUR)
    right.set_xscale("log")
    right.set_xticks(list(at), [f"{tau:g}" for tau in at])
    right.minorticks_off()
    right.set(xlabel="temperature", ylabel="kNN accuracy, %", title="SimCLR at other temperatures")
    figure.savefig(path)
    plt.close(figure)
