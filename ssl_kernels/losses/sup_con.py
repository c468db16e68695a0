r"""Supervised contrastive learning (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equations 2 and 3).

With all rows on the unit sphere, :math:`s_{ij} = z_i \cdot z_j / \tau` and :math:`P(i)` the other rows of ``i``'s class

.. math:: \mathcal L_\text{out} = \frac1{|I|} \sum_{i \in I} \Big[ \log \sum_{a \ne i} e^{s_{ia}}
          - \frac1{|P(i)|} \sum_{p \in P(i)} s_{ip} \Big], \qquad
          \mathcal L_\text{in} = \frac1{|I|} \sum_{i \in I} \Big[ \log \sum_{a \ne i} e^{s_{ia}}
          - \log \frac1{|P(i)|} \sum_{p \in P(i)} e^{s_{ip}} \Big],

over the rows :math:`I` that have a positive. The positives of the first, the paper's choice, are a plain sum: over all
pairs of a class it is :math:`|C|^2 - \sum |z|^2`, ``C`` the sum of its rows, so no label is looked at among the pairs.
The second asks of every pair whether it is one, in plain PyTorch, a block of rows at a time, and so does a third,
NT-Xent with more than one positive, where these do not compete with one another:

.. math:: \mathcal L_\text{pairs} = \frac1{\sum_i |P(i)|} \sum_i \sum_{p \in P(i)}
          -\log \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{a \notin P(i) \cup \{i\}} e^{s_{ia}}}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.classes import (
    check_labels,
    class_sizes,
    dense_classes,
    mean_products,
    pair_terms,
    positives_and_negatives,
)
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.sphere import unit_rows
from ssl_kernels.losses.temperature import as_factor, as_scale, check_temperature
from ssl_kernels.ops import accumulate_dtype, check_views, self_lse

__all__ = ["SupConLoss", "sup_con_loss", "sup_con_reference"]

FORMS = ("out", "in", "pairs")

# So many rows of 16 bits are multiplied as such; of fewer, a loss that nearly vanishes would keep the rounding.
MANY = 512


def sup_con_loss(
    features: Tensor | Sequence[Tensor],
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    form: str = "out",
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""Supervised contrastive loss (SupCon), O(N D) memory.

    Args:
        features: ``[N, D]``, or several views ``[N, D]`` of the same samples, float32/64, bfloat16 or float16;
            normalised here.
        labels: ``[N]`` integers, any; rows of the same label are positives of one another. None: every sample is a
            class of its own, and only its views are positives (NT-Xent for two).
        temperature: tau, a float or a one-element tensor (then it gets a gradient); ``|tau| >= 1e-8``.
        form: ``"out"``, the mean over the positives of the logarithm; ``"in"``, the logarithm of their mean; or
            ``"pairs"``, the mean over all pairs of positives, each by itself against the row's negatives.
        normalize: False to take the rows as they are.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.
            The forms ``"in"`` and ``"pairs"`` are PyTorch's business on all of them.

    Returns:
        The mean over the rows that have a positive (over the pairs), a float32 scalar (float64 for float64). If none
        has, zero, with a gradient of zero.

    Raises:
        ValueError: shapes, dtypes or devices disagree, labels of another length, ``|temperature| < 1e-8`` or NaN, an
            unknown form, unknown or unavailable backend; the message names what came and what was expected.
        TypeError: not floating-point features, not integer labels.

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362. Reference: :func:`sup_con_reference`.
    """
    views, labels = _check(features, labels, form)
    scale, multiplier = as_scale(temperature, views[0])
    z = unit_rows(views) if normalize else torch.cat([v.to(accumulate_dtype(v.dtype)) for v in views])
    factor, classes = as_factor(scale, multiplier, z), dense_classes(labels)
    if form == "out":
        coarse = views[0].dtype in (torch.float16, torch.bfloat16) and len(z) >= MANY
        return _out(z, classes, factor, scale, multiplier, coarse, backend)
    positives = class_sizes(classes)[classes] - 1
    if form == "pairs":
        return pair_terms(z, factor, classes).sum() / positives.sum().clamp_min(1)
    pos, neg = positives_and_negatives(z, factor, classes)
    less = torch.where(positives > 0, neg - pos, 0.0)
    terms = F.softplus(less, 1.0, 40.0) + positives.clamp_min(1).to(z.dtype).log()
    return torch.where(positives > 0, terms, 0.0).sum() / (positives > 0).sum().clamp_min(1)


def _out(
    z: Tensor,
    classes: Tensor,
    factor: Tensor,
    scale: Tensor | None,
    multiplier: float,
    coarse: bool,
    backend: str | None,
) -> Tensor:
    # The same rows as in the class sums: the rounding of their norms cancels, and so do large parts of the gradients,
    # which for rows of 16 bits must not be rounded before they meet
    options: dict[str, Any] = {"normalize": False, "coarse": coarse, "backend": backend}
    neg, _, top = self_lse([z], scale, multiplier, period=len(z), **options)
    sizes = class_sizes(classes)
    asks = sizes[classes] > 1
    # in float64, so that no digit is lost between numbers as large as 1/tau
    total = torch.where(asks, neg + top.double(), 0.0).sum() - factor * mean_products(z, classes, sizes)
    return (total / asks.sum().clamp_min(1)).to(z.dtype)


def _check(features: Tensor | Sequence[Tensor], labels: Tensor | None, form: str) -> tuple[list[Tensor], Tensor]:
    views = [features] if isinstance(features, Tensor) else list(features)
    if not views:
        raise ValueError("features: expected at least one view, got none")
    check_views(views, ["features"] if len(views) == 1 else [f"features[{k}]" for k in range(len(views))])
    if form not in FORMS:
        raise ValueError(f"form: expected 'out', 'in' or 'pairs', got {form!r}")
    if labels is None:
        labels = torch.arange(len(views[0]), device=views[0].device)
    check_labels("labels", labels, views[0])
    return views, labels.repeat(len(views))


def sup_con_reference(
    features: Tensor | Sequence[Tensor],
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    form: str = "out",
    normalize: bool = True,
) -> Tensor:
    """The same as :func:`sup_con_loss`, written as the paper has it, with the whole matrix and plain autograd."""
    views, labels = _check(features, labels, form)
    check_temperature(temperature)
    z = torch.cat(views)
    z = F.normalize(z, dim=1) if normalize else z
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (labels[:, None] == labels) & others
    count = positives.sum(1)
    logits = (z @ z.T / temperature).masked_fill(~others, float("-inf"))
    if len(z) == 1:  # nothing to be told apart from
        return (z * 0.0).nansum()
    if form == "pairs":
        neg = logits.masked_fill(positives, float("-inf")).logsumexp(1, keepdim=True)
        return F.softplus(neg - logits, 1.0, 40.0).masked_fill(~positives, 0.0).sum() / count.sum().clamp_min(1)
    log_prob = logits - logits.logsumexp(1, keepdim=True)
    if form == "out":
        rows = -log_prob.masked_fill(~positives, 0.0).sum(1) / count.clamp_min(1)
    else:
        asks = count > 0
        rows = count.clamp_min(1).to(z.dtype).log() - torch.where(
            asks, log_prob.masked_fill(~positives & asks[:, None], float("-inf")).logsumexp(1), 0.0
        )
    return rows.sum() / (count > 0).sum().clamp_min(1)


class SupConLoss(nn.Module):
    """:func:`sup_con_loss` as a module: ``SupConLoss(temperature=0.1)(features, labels)``.

    Args:
        temperature: tau, a float, or a one-element tensor or ``nn.Parameter`` to learn it.
        form, backend: as in :func:`sup_con_loss`.
    """

    def __init__(self, temperature: float | Tensor = 0.1, form: str = "out", *, backend: str | None = None) -> None:
        super().__init__()
        check_temperature(temperature)
        if form not in FORMS:
            raise ValueError(f"form: expected 'out', 'in' or 'pairs', got {form!r}")
        self.temperature = temperature
        self.form = form
        self.backend = backend

    def forward(self, features: Tensor | Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        return sup_con_loss(features, labels, self.temperature, form=self.form, backend=self.backend)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, form={self.form!r}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"features": torch.randn(n, d, **tensor), "labels": _labels(n, **tensor), "temperature": 0.1}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    labels = _labels(n, **tensor)
    centres = torch.randn(n, d, **tensor)
    return {"features": centres[labels] + 0.1 * torch.randn(n, d, **tensor), "labels": labels, "temperature": 0.02}


def _labels(n: int, dtype: torch.dtype, **tensor: Any) -> Tensor:
    return torch.randint(max(1, n // 5), (n,), **tensor)


SPEC = LossSpec(
    name="sup_con",
    fused=sup_con_loss,
    reference=sup_con_reference,
    module=SupConLoss,
    inputs=_inputs,
    trained=_trained,
    features=("features",),
    parameters=("temperature",),
    cross_entropy=False,  # the positives do not come from the matrix, and where they compete, never vanishes
)
