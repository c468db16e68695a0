"""How good a map in the plane is, with t-SNE of the features beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from methods import pictures
from methods.data import Data, Split
from methods.evaluate import accuracy, features_of

TRAIN, TEST = 5000, 2000  # t-SNE of more takes many minutes


def plane_scores(points: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int) -> Tensor:
    """Votes of the ``k`` nearest of ``bank``, by distance, for each class, ``[N, classes]``."""
    k = min(k, len(bank))
    nearest = torch.cat([torch.cdist(part, bank).topk(k, largest=False).indices for part in points.split(1024)])
    votes = torch.zeros(len(points), classes, device=points.device)
    return votes.scatter_add_(1, labels[nearest], torch.ones_like(nearest, dtype=votes.dtype))


def measure_plane(method: nn.Module, data: Data, folder: Path | None) -> dict[str, float]:
    """kNN accuracy in the plane; with a folder, that of t-SNE of the features too, and ``plane.png`` with both maps.

    Args:
        method: its ``embed(images)`` are points in the plane, its ``encoder`` gives the features, and as many
            neighbours vote as ``config.knn_k`` says, as elsewhere.
    """
    device = next(method.parameters()).device
    bank, points = (features_of(method, part.images, device, method.embed).cpu() for part in (data.train, data.test))
    k = method.config.knn_k
    values = _knn("knn_2d", points, bank, data.train, data.test, data, k)
    if folder is None:
        return values
    train, test = _spread(data.train, TRAIN), _spread(data.test, TEST)
    maps = {_titled("t-SimCNE", values): features_of(method, test.images, device, method.embed)}
    features = [features_of(method.encoder, part.images, device) for part in (train, test)]
    both = pictures.tsne(torch.cat(features))  # of a map by t-SNE there is no map of new images
    if both is not None:
        of_tsne = _knn("knn_2d_of_tsne", both[len(train) :], both[: len(train)], train, test, data, k)
        maps[_titled("t-SNE of the features", of_tsne)] = both[len(train) :]
        values |= of_tsne
    pictures.maps(folder / "plane.png", maps, test.labels, data.classes)
    return values


def _knn(name: str, points: Tensor, bank: Tensor, train: Split, test: Split, data: Data, k: int) -> dict[str, float]:
    if not data.labelled:
        return {}
    return {name: accuracy(plane_scores(points, bank, train.labels, len(data.classes), k), test.labels)}


def _spread(split: Split, count: int) -> Split:
    """At most ``count`` rows, spread evenly over the split."""
    rows = torch.arange(0, len(split), -(-len(split) // count))
    return Split(split.images[rows], None if split.labels is None else split.labels[rows])


def _titled(title: str, values: dict[str, float]) -> str:
    return title + "".join(f" (kNN {value:.1f} %)" for value in values.values())
