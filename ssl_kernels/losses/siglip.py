r"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1).

With image features ``x`` and text features ``y`` on the unit sphere, :math:`s_{ij} = \text{logit\_scale} \cdot x_i
\cdot y_j + \text{logit\_bias}`, and :math:`t_{ij}` one where image and text belong together and minus one elsewhere:

.. math:: \mathcal L = -\frac1N \sum_{ij} \log \sigma(t_{ij} s_{ij}).

Nothing is normalised over a row or a column, so the loss and its gradients come out of one sweep over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.gather import broadcast_rows, gather_rows, shift_rows
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.temperature import as_logit_bias, as_logit_scale
from ssl_kernels.ops import check_not_empty, check_pairs, check_rows, check_width, pair_softplus

__all__ = ["SigLipLoss", "siglip_loss", "siglip_reference"]


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    offset: int | None = 0,
    backend: str | None = None,
) -> Tensor:
    r"""Sigmoid loss over all pairs of images and texts (SigLIP), value and gradients in one sweep, O(N D) memory.

    Args:
        image_features: ``[M, D]``, float32/64, bfloat16 or float16, expected on the unit sphere: taken as they are.
        text_features: ``[K, D]`` of the same dtype and device. The text of image ``i`` is row ``offset + i``.
        logit_scale: what multiplies the products (already exponentiated), a float or a one-element tensor, which gets
            a gradient.
        logit_bias: what is added to the logits, a float or a one-element tensor, which gets a gradient; None for 0.
        offset: the row of image 0's text; None: no text belongs to any image (texts of another machine).
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The sum over all pairs divided by the number of images, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, fewer texts than images, logit_scale or logit_bias not one
            number, unknown backend; the message names what came and what was expected.
        TypeError: not floating-point tensors.

    Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1. Reference: :func:`siglip_reference`.
    """
    _check(image_features, text_features, offset)
    scale, multiplier = as_logit_scale(logit_scale, image_features)
    bias = None if logit_bias is None else as_logit_bias(logit_bias, image_features)
    total = pair_softplus(image_features, text_features, scale, bias, multiplier, offset=offset, backend=backend)
    return total / len(image_features)


def _check(image_features: Tensor, text_features: Tensor, offset: int | None) -> None:
    if offset is not None:
        check_pairs("image_features", image_features, "text_features", text_features, offset)
        return
    check_rows("image_features", image_features)
    check_not_empty("image_features", image_features)
    check_width("text_features", text_features, "image_features", image_features)
    check_not_empty("text_features", text_features)


def siglip_reference(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    offset: int | None = 0,
) -> Tensor:
    """The same as :func:`siglip_loss`, as the paper's algorithm has it, with the whole matrix and plain autograd."""
    _check(image_features, text_features, offset)
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    signs = -torch.ones_like(logits)
    if offset is not None:
        signs[:, offset : offset + len(logits)].fill_diagonal_(1.0)
    return -F.logsigmoid(signs * logits).sum() / len(logits)


class SigLipLoss(nn.Module):
    """:func:`siglip_loss` as a module, with the constructor and the call of open_clip's ``SigLipLoss``.

    ``SigLipLoss()(image_features, text_features, logit_scale, logit_bias)``, the features on the unit sphere, the scale
    already exponentiated. Over several processes every one has its images meet the texts of all, and the average of
    the gradients over processes is the gradient of the whole batch.

    Args:
        cache_labels: accepted; the loss has no labels to keep.
        rank, world_size: of this process, and how many there are; with one there is no communication.
        dist_impl: how the texts travel: ``"bidir"`` (default) sends them both ways round the ring, ``"shift"`` one way,
            ``"reduce"`` broadcasts those of one process after the other, ``"gather"`` has all at once. The loss is the
            same.
        chunk_size: accepted; the matrix is never stored, whatever its size.
        backend: as in :func:`siglip_loss`.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        dist_impl = dist_impl or "bidir"
        if dist_impl not in ("bidir", "shift", "reduce", "gather"):
            raise ValueError(f"dist_impl: expected bidir, shift, reduce or gather, got {dist_impl!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} for world_size {world_size}, got {rank}")
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        terms = [
            siglip_loss(image_features, texts, logit_scale, logit_bias, offset=offset, backend=self.backend)
            for texts, offset in self._texts(text_features)
        ]
        loss = sum(terms[1:], terms[0])
        return {"contrastive_loss": loss} if output_dict else loss

    def _texts(self, text_features: Tensor) -> Iterator[tuple[Tensor, int | None]]:
        """The texts of all processes, a block at a time, and where in it those of the own images begin."""
        size = self.world_size
        if size > 1 and self.dist_impl == "gather":
            yield gather_rows(text_features, size), self.rank * len(text_features)
            return
        if size > 1 and self.dist_impl == "reduce":
            for source in range(size):  # one's own too, through the broadcast: backward, all take part in all of them
                yield broadcast_rows(text_features, source), 0 if source == self.rank else None
            return
        yield text_features, 0
        if self.dist_impl == "bidir":  # a step reaches as far to the left as to the right, which may be the same
            steps = [sorted({shift, size - shift}) for shift in range(1, size // 2 + 1)]
        else:
            steps = [[shift] for shift in range(1, size)]
        for shifts in steps:
            for texts in shift_rows(text_features, *shifts):
                yield texts, None

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The logits, stored: for losses built on this one; :meth:`forward` needs none."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """One where a pair belongs together, minus one elsewhere, for what :meth:`get_logits` returns."""
        signs = -torch.ones((num_logits, num_logits), device=device, dtype=dtype)
        return signs if negative_only else signs.fill_diagonal_(1.0)


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    x, y = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    features = {"image_features": F.normalize(x, dim=1), "text_features": F.normalize(y, dim=1)}
    return features | {"logit_scale": 10.0, "logit_bias": -10.0}  # as the paper begins


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    x = F.normalize(torch.randn(n, d, **tensor), dim=1)
    y = F.normalize(x + 0.1 * F.normalize(torch.randn(n, d, **tensor), dim=1), dim=1)
    return {"image_features": x, "text_features": y, "logit_scale": 50.0, "logit_bias": -15.0}


SPEC = LossSpec(
    name="siglip",
    fused=siglip_loss,
    reference=siglip_reference,
    module=SigLipLoss,
    inputs=_inputs,
    trained=_trained,
    features=("image_features", "text_features"),
    parameters=("logit_scale", "logit_bias"),
)
