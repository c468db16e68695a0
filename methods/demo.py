"""The demo: SimCLR on scikit-learn's digits, and what it is good for where labels are scarce."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.augment import as_float
from methods.data import Data
from methods.evaluate import accuracy, features_of, knn_scores
from methods.log import Log, read_metrics
from methods.recipes import RECIPES
from methods.simclr import SimCLR
from methods.train import Run

LABELS_PER_CLASS = (1, 2, 5, 10, 20)
DRAWS = 20
COLOURS = {"learned": "#1f6fb4", "raw pixels": "#d9822b", "random weights": "#8a8a8a"}


@dataclass(frozen=True)
class Demo:
    """SimCLR learns scikit-learn's digits in a minute, with pictures."""

    out: Path = Path("runs/demo")
    """Folder for the run and its pictures; the next free number is put behind it if it is taken."""
    epochs: int = 40
    """Passes over the 1,442 training images."""
    seed: int = 0
    """Of the weights, the order of the images and the augmentations."""


def demo(settings: Demo) -> None:
    out = free(settings.out)
    recipe = RECIPES["digits"]["simclr"] | {"epochs": settings.epochs, "seed": settings.seed}
    config = SimCLR.Config(**recipe, recipe="digits", out=out)
    with torch.random.fork_rng():
        run = Run(SimCLR, config)
        data, encoder = run.data, run.method.encoder
        print(
            f"SimCLR on {len(data.train)} images of handwritten digits, without their labels;"
            f" {len(data.test)} others to test on"
        )
        features = {"raw pixels": [part.images.flatten(1).float() for part in (data.train, data.test)]}
        features["random weights"] = _encode(_untrained(encoder, data, run.device), data, run.device)
        with Log(out, config.tensorboard) as log:
            run.fit(log)
            results = run.finish(log)
        features["learned"] = _encode(encoder, data, run.device)
    table = {name: [few_labels(*features[name], data, n) for n in LABELS_PER_CLASS] for name in COLOURS}
    _picture(out / "demo.png", data, features, table, out)
    print(f"all labels: kNN {results['knn']:.1f} %, linear probe {results['linear_probe']:.1f} %")
    print(f"picture: {out / 'demo.png'}")
    line = ", ".join(f"{name} {mean:.1f} ± {std:.1f} %" for name, ((mean, std), *_) in table.items())
    print(f"one label per class, nearest neighbour, {DRAWS} draws: {line}")


def free(folder: Path) -> Path:
    """``folder``, or with the smallest number behind it that is not taken."""
    names = (folder.with_name(f"{folder.name}-{k}") if k > 1 else folder for k in itertools.count(1))
    return next(name for name in names if not name.exists())


def _untrained(encoder: torch.nn.Module, data: Data, device: torch.device) -> torch.nn.Module:
    """The same weights with batch statistics that fit the images: without, they would look worse than they are."""
    other = copy.deepcopy(encoder).train()
    for module in other.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        other(as_float(data.train.images.to(device)))
    return other


def _encode(encoder: torch.nn.Module, data: Data, device: torch.device) -> list[Tensor]:
    return [features_of(encoder, part.images, device).cpu() for part in (data.train, data.test)]


def few_labels(train: Tensor, test: Tensor, data: Data, per_class: int) -> tuple[float, float]:
    """Test accuracy of the nearest of a few labelled training images: mean and standard deviation over the draws.

    The draws are the same for all kinds of features.
    """
    of_class = [(data.train.labels == c).nonzero()[:, 0] for c in range(len(data.classes))]
    results = []
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        rows = torch.cat([r[torch.randperm(len(r), generator=generator)[:per_class]] for r in of_class])
        votes = knn_scores(test, train[rows], data.train.labels[rows], len(of_class), k=1, temperature=1.0)
        results.append(accuracy(votes, data.test.labels))
    values = torch.tensor(results)
    return values.mean().item(), values.std().item()


# --------------------------------------------------------------------------------------------------------- picture
def _picture(path: Path, data: Data, features: dict[str, Any], table: dict[str, Any], run_folder: Path) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the demo's picture needs matplotlib: pip install 'ssl_kernels[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    figure, axes = plt.subplots(2, 2, figsize=(12, 10.5), height_ratios=(1.7, 1), layout="constrained")
    for ax, name in zip(axes[0], ("raw pixels", "learned"), strict=True):
        _map(ax, features[name][1], data.test.labels)
        ax.set_title(f"{name}: the {len(data.test)} test digits in two dimensions (t-SNE)")
    _curves(axes[1, 0], run_folder)
    _bars(axes[1, 1], table)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _map(ax: Any, features: Tensor, labels: Tensor) -> None:
    from matplotlib import colormaps
    from sklearn.manifold import TSNE

    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    x, y = TSNE(init="pca", perplexity=30, random_state=0).fit_transform(unit).T
    for digit in labels.unique().tolist():
        rows = (labels == digit).numpy()
        ax.scatter(x[rows], y[rows], marker=f"${digit}$", s=60, linewidths=0.3, color=colormaps["tab10"](digit))
    ax.set(xticks=[], yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)


def _curves(ax: Any, folder: Path) -> None:
    train, evaluated = read_metrics(folder, "train"), read_metrics(folder, "eval")
    ax.plot([r["step"] for r in train], [r["loss"] for r in train], color="#444444")
    ax.set(xlabel="step", ylabel="NT-Xent loss", title="training")
    right = ax.twinx()
    right.spines["right"].set_visible(True)
    right.plot([r["step"] for r in evaluated], [r["knn"] for r in evaluated], "o-", color=COLOURS["learned"], ms=4)
    right.set_ylabel("kNN accuracy, all labels, %", color=COLOURS["learned"])
    right.tick_params(axis="y", colors=COLOURS["learned"])


def _bars(ax: Any, table: dict[str, Any]) -> None:
    for name, rows in table.items():
        mean, std = (torch.tensor(column) for column in zip(*rows, strict=True))
        ax.plot(LABELS_PER_CLASS, mean, "o-", color=COLOURS[name], label=name, ms=4)
        ax.fill_between(LABELS_PER_CLASS, mean - std, mean + std, color=COLOURS[name], alpha=0.15, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(LABELS_PER_CLASS, [str(n) for n in LABELS_PER_CLASS])
    ax.minorticks_off()
    ax.set(xlabel="labels per class", ylabel="test accuracy, %", ylim=(0, 100))
    ax.set_title(f"nearest labelled neighbour, mean and deviation of {DRAWS} draws")
    ax.legend(loc="lower right", frameon=False)
