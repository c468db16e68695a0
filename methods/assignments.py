"""How a teacher spreads images over prototypes: whether its outputs have collapsed, and in which of the two ways."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # rows whose logits are held at a time


@torch.no_grad()
def assignment_monitor(
    x_teacher: Tensor,
    x_student: Tensor,
    teacher_prototypes: Tensor,
    prototypes: Tensor,
    center: Tensor,
    teacher_temp: float,
    student_temp: float,
) -> dict[str, float]:
    r"""Three numbers on the distributions p (teacher) and q (student) over K prototypes, in nats.

    * ``teacher_entropy``: the mean of H(p) over the images; log K where they all are uniform.
    * ``prototype_entropy``: H of the mean of p; log K where prototypes are used equally, 0 where one has everything.
    * ``kl``: the mean of KL(p, q).

    The same output for every image, whichever it is, has ``teacher_entropy = prototype_entropy``. Caron et al. 2021,
    https://arxiv.org/abs/2104.14294, figure 7, but for the second.
    """
    entropy, divergence, mean = 0.0, 0.0, torch.zeros(len(prototypes), device=prototypes.device)
    for t, s in zip(x_teacher.split(CHUNK), x_student.split(CHUNK), strict=True):
        log_p = ((t @ teacher_prototypes.T - center.flatten()) / teacher_temp).log_softmax(1)
        log_q = (s @ prototypes.T / student_temp).log_softmax(1)
        p = log_p.exp()
        entropy -= torch.xlogy(p, p).sum()
        divergence += (p * (log_p - log_q)).sum()
        mean += p.sum(0)
    mean, n = mean / len(x_teacher), len(x_teacher)
    values = {"teacher_entropy": entropy / n, "prototype_entropy": -torch.xlogy(mean, mean).sum(), "kl": divergence / n}
    return {name: float(value) for name, value in values.items()}
