"""How good features are: nearest neighbours, a linear classifier, and whether they have collapsed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.augment import as_float

CHUNK = 1024


@torch.no_grad()
def features_of(
    model: nn.Module, images: Tensor, device: torch.device, embed: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``model``, or a method ``embed`` of it, in evaluation mode over uint8 images; float32 on the device."""
    was_training = model.training
    model.eval()
    out = [(embed or model)(as_float(part.to(device))).float() for part in images.split(CHUNK)]
    model.train(was_training)
    return torch.cat(out)


def knn_scores(features: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    r"""Votes of the ``k`` nearest of ``bank`` for each class, ``[N, classes]`` (Wu et al. 2018).

    Near is a large cosine :math:`s`, and a neighbour has :math:`e^{s / T}` votes.
    """
    features, bank = F.normalize(features, dim=1), F.normalize(bank, dim=1)
    k = min(k, len(bank))
    scores = []
    for part in features.split(CHUNK):
        s, nearest = (part @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(part), classes, device=part.device, dtype=s.dtype)
        # Shifted by the largest: the same order, and no overflow at a small temperature
        scores.append(votes.scatter_add_(1, labels[nearest], ((s - s[:, :1]) / temperature).exp()))
    return torch.cat(scores)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Per cent of rows whose highest score is that of their label."""
    return 100 * (scores.argmax(1) == labels).float().mean().item()


STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Test accuracy in per cent of a logistic regression on standardised features.

    The best of five strengths of its penalty, chosen on a fifth of every class of the training set, then fitted to all
    of it.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "linear_probe needs scikit-learn: pip install 'ssl_kernels[train]', or --no-linear-probe"
        ) from error
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    x, test = (((f - mean) / std).cpu().numpy() for f in (features, test_features))
    y, truth = (part.cpu().numpy() for part in (labels, test_labels))

    def fitted(x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
        # The penalty is on the mean over the samples: scikit-learn's C multiplies their sum
        return LogisticRegression(C=strength / len(x), max_iter=1000).fit(x, y)

    held_out = _fifth(y)
    score = dict.fromkeys(STRENGTHS, 0.0)
    if held_out.any():
        score = {s: fitted(x[~held_out], y[~held_out], s).score(x[held_out], y[held_out]) for s in STRENGTHS}
    return 100 * float(fitted(x, y, max(score, key=score.__getitem__)).score(test, truth))


def _fifth(labels: np.ndarray) -> np.ndarray:
    """Which rows are held out: every fifth of each class, and none of a class with fewer."""
    out = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        out[np.flatnonzero(labels == c)[4::5]] = True
    return out


def collapse_monitor(embed: Callable[[Tensor], Tensor], views: list[Tensor]) -> dict[str, float]:
    r"""Four numbers that say whether embeddings still tell images apart (on the unit sphere, two views of N images).

    * ``feature_std``: spread per dimension times :math:`\sqrt D`; 1 on the whole sphere, 0 when all are one point.
    * ``effective_rank``: of how many directions they are made, :math:`e^H` for the entropy H of the shares of their
      principal axes; D on the whole sphere, 1 when all are one point, or on one line.
    * ``alignment``: mean squared distance of the two views of an image; 0 is perfect.
    * ``uniformity``: log of the mean of :math:`e^{-2 d^2}` over pairs of images; -4 is spread out, 0 is one point.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242; the first as in SimSiam, the second of Roy and Vetterli 2007.
    """
    with torch.no_grad():
        z1, z2 = (F.normalize(embed(v).float(), dim=1) for v in views)
    shares = torch.linalg.svdvals(z1).square() / len(z1)
    return {
        "feature_std": (z1.std(0, correction=0).mean() * z1.shape[1] ** 0.5).item(),
        "effective_rank": torch.special.entr(shares).sum().exp().item(),
        "alignment": (z1 - z2).square().sum(1).mean().item(),
        "uniformity": torch.pdist(z1).square().mul(-2).exp().mean().log().item(),
    }
