"""CLIP: ``n`` images and their texts on the unit sphere, at the scale that CLIP ends with; the scale is learned."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Loss, Problem


def two_products(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """As the field's library for CLIP has it: a matrix for the images and one for the texts."""
    per_image = logit_scale * image_features @ text_features.T
    per_text = logit_scale * text_features @ image_features.T
    labels = torch.arange(len(image_features), device=image_features.device)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def one_product(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """One matrix, reduced along both its sides, with as few sweeps as eager PyTorch allows."""
    x = image_features * logit_scale
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = (x @ text_features.T).to(wide)
    positive = (x * text_features).sum(1, dtype=wide)
    return (logits.logsumexp(1) + logits.logsumexp(0)).mean() / 2 - positive.mean()


def chunked_by_torch(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Torch's own way around the matrix: a linear layer and its cross-entropy by chunks, once for either side."""
    labels = torch.arange(len(image_features), device=image_features.device)
    chunks = torch.nn.LinearCrossEntropyOptions()
    per_image = F.linear_cross_entropy(logit_scale * image_features, text_features, labels, options=chunks)
    per_text = F.linear_cross_entropy(logit_scale * text_features, image_features, labels, options=chunks)
    return (per_image + per_text) / 2


def inf_cl(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Inf-CL's Triton kernels, where they are installed."""
    from inf_cl import cal_flash_loss

    per_image = cal_flash_loss(image_features, text_features, scale=logit_scale)
    return (per_image + cal_flash_loss(text_features, image_features, scale=logit_scale)) / 2


def _rivals() -> dict[str, Loss]:
    rivals: dict[str, Loss] = {EAGER: two_products, "eager, one product": one_product}
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13
        rivals["F.linear_cross_entropy"] = chunked_by_torch
    if find_spec("inf_cl"):
        rivals["Inf-CL"] = inf_cl
    return rivals


def on_the_sphere(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    """Pairs as a trained model has them: alike, but not the same."""
    x, noise = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    return {"image_features": F.normalize(x, dim=1), "text_features": F.normalize(x + 2 * noise, dim=1)}


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return on_the_sphere(n, d, **tensor) | {"logit_scale": 100.0}


PROBLEMS = {
    "clip": Problem(
        "clip",
        rivals=_rivals(),
        compiled=(EAGER, "eager, one product"),
        sizes=((256, 512), (1024, 512), (4096, 128), (4096, 512)),
        inputs=_inputs,
        parameters=("logit_scale",),
        entries=lambda n: n * n,
        gpu=tuple((n, d) for n in (4096, 32768, 65536) for d in (512, 768, 1024)),
        units=(1, 4),
        exponentials=(1, 2),
    )
}
