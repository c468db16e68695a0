"""Negative cosines of ``n`` paired rows, bare and as BYOL and SimSiam have them: no matrix, memory is the bound."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Loss, Problem
from ssl_kernels import byol_reference, simsiam_reference


def cosine(x0: Tensor, x1: Tensor) -> Tensor:
    """As the field's library of methods has it."""
    return -F.cosine_similarity(x0, x1, 1, 1e-8).mean()


def _problem(loss: str, eager: Loss, features: tuple[str, ...]) -> Problem:
    return Problem(
        loss,
        rivals={EAGER: eager},
        sizes=((256, 256), (4096, 256), (4096, 2048)),
        features=features,
        entries=lambda n: n,
        gpu=((4096, 256),),
        units=(1, 2),
        exponentials=(0, 0),
    )


PROBLEMS = {
    "negative_cosine": _problem("negative_cosine", cosine, ("x0", "x1")),
    "byol": _problem("byol", byol_reference, ("p",)),  # the target gets no gradient
    "simsiam": _problem("simsiam", simsiam_reference, ("p",)),
}
