"""Pictures of features and of results; matplotlib is imported where one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

PALETTE = "tab10"
MANY = "tab20"
COMPONENTS = 50


def pyplot() -> ModuleType:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'ssl_kernels[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    return plt


def tsne(features: Tensor) -> Tensor | None:
    """Features on the unit sphere in two dimensions, by t-SNE; None where scikit-learn is not installed."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return None
    unit = F.normalize(features.float(), dim=1).cpu().numpy()
    if min(unit.shape) > COMPONENTS:  # neighbours are found much faster, and are nearly the same
        unit = PCA(COMPONENTS, random_state=0).fit_transform(unit)
    perplexity = min(30, (len(unit) - 1) // 3)
    return Tensor(TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unit))


def maps(path: Path, points: Mapping[str, Tensor], labels: Tensor | None, classes: Sequence[str]) -> None:
    """One map for each entry, ``[N, 2]`` points under its title, coloured by class."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(points), figsize=(6.5 * len(points), 6.5), squeeze=False, layout="constrained")
    colours = plt.get_cmap(PALETTE if len(classes) <= 10 else MANY)
    for ax, (title, xy) in zip(axes[0], points.items(), strict=True):
        x, y = xy.float().cpu().numpy().T
        if labels is None:
            ax.scatter(x, y, s=5, color="#1f6fb4", linewidths=0)
        else:
            for c, name in enumerate(classes):
                rows = (labels == c).numpy()
                ax.scatter(x[rows], y[rows], s=7, color=colours(c % colours.N), label=name, linewidths=0)
        ax.set(xticks=[], yticks=[], title=title)
        ax.spines[["left", "bottom"]].set_visible(False)
    if labels is not None and len(classes) <= 20:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=10, markerscale=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves(path: Path, lines: Mapping[str, Mapping[float, Any]], xlabel: str, ylabel: str) -> None:
    """Lines over a logarithmic axis; a value is a number, or its mean and standard deviation."""
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, values in lines.items():
        x = sorted(values)
        means, stds = zip(*((v if isinstance(v, tuple) else (v, 0.0)) for v in map(values.get, x)), strict=True)
        ax.errorbar(x, means, stds, fmt="o-", ms=4, capsize=2, label=name)
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
