"""SigLIP: ``n`` images and their texts on the unit sphere; scale and bias are learned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.clip import on_the_sphere
from benchmarks.problems.problem import EAGER, Problem


def signed(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """As the paper and the field's library have it: every logit times its sign, through a logsigmoid."""
    n = len(image_features)
    logits = logit_scale * image_features @ text_features.T + logit_bias
    signs = 2 * torch.eye(n, device=logits.device, dtype=logits.dtype) - torch.ones_like(logits)
    return -F.logsigmoid(signs * logits).sum() / n


def softplus(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Without signs: the softplus of all logits, less the positives."""
    n, x = len(image_features), image_features * logit_scale
    wide = torch.promote_types(x.dtype, torch.float32)
    positive = (x * text_features).sum(1, dtype=wide) + logit_bias
    return F.softplus((x @ text_features.T).to(wide) + logit_bias).sum() / n - positive.mean()


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return on_the_sphere(n, d, **tensor) | {"logit_scale": 100.0, "logit_bias": -10.0}


PROBLEMS = {
    "siglip": Problem(
        "siglip",
        rivals={EAGER: signed, "eager, softplus": softplus},
        compiled=(EAGER, "eager, softplus"),
        sizes=((256, 512), (1024, 512), (4096, 128), (4096, 512)),
        inputs=_inputs,
        parameters=("logit_scale", "logit_bias"),
        entries=lambda n: n * n,
        gpu=((4096, 768), (32768, 768)),
        units=(1, 3),
        exponentials=(1, 1),
    )
}
