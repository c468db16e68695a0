r"""The loss of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3).

With image features ``x`` and text features ``y`` on the unit sphere and :math:`s_{ij} = \text{logit\_scale} \cdot x_i
\cdot y_j`, images against texts and texts against images:

.. math:: \mathcal L = -\frac1{2N} \sum_i \Big[ \log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
          + \log\frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}} \Big].

Further texts may stand beside those of the images, negatives to all of them (hard negatives as in NegCLIP, Yuksekgonul
et al. 2022, https://arxiv.org/abs/2210.01936); they are rivals of the images' texts and ask nothing themselves.

Where an image has several texts, or the other way round, the targets are spread evenly over all pairs with the same id
(as in UniCL, Yang et al. 2022, https://arxiv.org/abs/2204.03610): with :math:`P(i)` the texts of image ``i``,

.. math:: \mathcal L_\text{images} = \frac1{|\{i : P(i) \ne \emptyset\}|} \sum_{i : P(i) \ne \emptyset}
          \Big[ \log \sum_j e^{s_{ij}} - \frac1{|P(i)|} \sum_{p \in P(i)} s_{ip} \Big].

The sum over the positives is linear in the features: it needs the sum of each id's rows, and no mask over the pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.classes import check_labels, class_sizes, class_sums, dense_classes
from ssl_kernels.losses.gather import gather_rows
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.temperature import as_factor, as_logit_bias, as_logit_scale
from ssl_kernels.ops import (
    Reduced,
    accumulate_dtype,
    check_not_empty,
    check_pairs,
    check_rows,
    check_width,
    cross_lse,
    cross_softplus_mean,
    mean_log_share,
)

__all__ = ["ClipLoss", "clip_loss", "clip_reference"]


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    negatives: Tensor | None = None,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    r"""Symmetric cross-entropy between images and texts (CLIP), both directions in one sweep, O(N D) memory.

    Args:
        image_features: ``[M, D]``, float32/64, bfloat16 or float16, expected on the unit sphere: taken as they are.
        text_features: ``[K, D]``, ``K >= M``, of the same dtype and device. The text of image ``i`` is row ``offset +
            i``; all others are its negatives. Texts without an image ask nothing themselves.
        logit_scale: what multiplies the products (already exponentiated), a float or a one-element tensor, which gets
            a gradient.
        logit_bias: a float or a one-element tensor, added to all logits. A softmax does not see it: it gets a
            gradient of zero.
        negatives: further texts ``[L, D]``, negatives to all images.
        ids: ``[M]`` integers; images and texts with the same id are positives of one another. Then ``K`` is free.
        text_ids: ``[K]`` integers, the ids of the texts; without them, those of the images.
        offset: the row of image 0's text (local images against texts gathered from several machines).
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean of both directions, a float32 scalar (float64 for float64). Rows without any positive are left out;
        without any positive at all, zero, with a gradient of zero.

    Raises:
        ValueError: shapes, dtypes or devices disagree, fewer texts than images, an offset beside ids, ids of another
            length, logit_scale not one number, unknown backend; the message names what came and what was expected.
        TypeError: not floating-point features, not integer ids.

    Radford et al. 2021, https://arxiv.org/abs/2103.00020. Reference: :func:`clip_reference`.
    """
    _check(image_features, text_features, negatives, ids, text_ids, offset)
    scale, multiplier = as_logit_scale(logit_scale, image_features)
    texts = [text_features] if negatives is None else [text_features, negatives]
    options: dict[str, Any] = {"normalize": False, "backend": backend}
    if ids is None:
        loss = cross_softplus_mean(image_features, texts, scale, multiplier, offset=offset, **options)
    else:
        at = offset if sum(map(len, texts)) >= len(image_features) else None
        rows, columns = cross_lse(image_features, texts, scale, multiplier, offset=at, columns=True, **options)
        classes = dense_classes(torch.cat([ids, ids if text_ids is None else text_ids]))
        factor = as_factor(scale, multiplier, image_features)
        loss = _by_classes(image_features, text_features, rows, columns, classes, factor)
        loss = loss.to(accumulate_dtype(image_features.dtype))
    return _unseen(loss, logit_bias)


def _unseen(loss: Tensor, logit_bias: float | Tensor | None) -> Tensor:
    """``loss``, with ``logit_bias`` in its graph."""
    return loss if logit_bias is None else loss + 0.0 * as_logit_bias(logit_bias, loss).to(loss.dtype).reshape(())


def _by_classes(x: Tensor, y: Tensor, rows: Reduced, columns: Reduced, classes: Tensor, factor: Tensor) -> Tensor:
    m, k = len(x), len(y)
    x_sizes, y_sizes = class_sizes(classes[:m], m + k), class_sizes(classes[m:], m + k)
    x_sums, y_sums = class_sums(x, classes[:m], m + k), class_sums(y, classes[m:], m + k)
    pairs = (x_sums * y_sums).sum(1).double()  # the products of all positive pairs of a class
    # A trained model's loss is nearly zero where the image and the text of one row have an id to themselves: there the
    # positive stays out of the sums, or rounding it would be all that is left. Others' is at least the entropy of
    # their targets.
    own = classes[: min(len(rows.pos), k)]
    alone = (own == classes[m : m + len(own)]) & (x_sizes * y_sizes == 1)[own]
    pairs = pairs.masked_fill(torch.zeros_like(x_sizes, dtype=torch.bool).scatter(0, own, alone), 0.0)
    terms = []
    for side, of_row, sizes in ((rows, classes[:m], y_sizes), (columns, classes[m:], x_sizes)):
        asks = sizes[of_row] > 0
        total = torch.where(asks, _from_sums(side, alone)[: len(asks)], 0.0).sum()
        total = total - factor * (pairs / sizes.clamp_min(1)).sum()
        terms.append(total / asks.sum().clamp_min(1))
    return (terms[0] + terms[1]) / 2


def _from_sums(side: Reduced, alone: Tensor) -> Tensor:
    """The log-sum-exp of each row, or where its positive is ``alone`` what that falls short of it."""
    neg, pos, top = (t.double() for t in side)
    first, rest = neg.split([len(pos), len(neg) - len(pos)])
    alone = F.pad(alone, (0, len(pos) - len(alone)))
    with_positive = torch.where(
        alone, F.softplus(first - pos, 1.0, 40.0), torch.logaddexp(first, pos) + top[: len(pos)]
    )
    return torch.cat([with_positive, rest + top[len(pos) :]])


def _check(image_features, text_features, negatives, ids, text_ids, offset) -> None:
    if ids is None:
        check_pairs("image_features", image_features, "text_features", text_features, offset)
        if text_ids is not None:
            raise ValueError("text_ids: expected ids beside them, got none")
    else:
        check_rows("image_features", image_features)
        check_not_empty("image_features", image_features)
        check_width("text_features", text_features, "image_features", image_features)
        check_not_empty("text_features", text_features)
        check_labels("ids", ids, image_features)
        check_labels("ids" if text_ids is None else "text_ids", ids if text_ids is None else text_ids, text_features)
        if offset:
            raise ValueError(f"offset: expected 0 beside ids, got {offset}")
    if negatives is not None:
        check_width("negatives", negatives, "image_features", image_features)


def clip_reference(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    negatives: Tensor | None = None,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """The same as :func:`clip_loss`, as the paper's figure 3 has it, with the whole matrix and plain autograd."""
    _check(image_features, text_features, negatives, ids, text_ids, offset)
    texts = text_features if negatives is None else torch.cat([text_features, negatives])
    logits = logit_scale * image_features @ texts.T
    if logit_bias is not None:
        logits = logits + logit_bias
    per_image, per_text = logits, logits[:, : len(text_features)].T
    if ids is None:
        i = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(per_image, i + offset) + F.cross_entropy(per_text[offset : offset + len(i)], i)) / 2
    pairs = ids[:, None] == (ids if text_ids is None else text_ids)
    terms = []
    for s, positive in ((per_image, F.pad(pairs, (0, per_image.shape[1] - pairs.shape[1]))), (per_text, pairs.T)):
        targets = positive.to(s.dtype) / positive.sum(1, keepdim=True).clamp_min(1)
        terms.append(-(targets * s.log_softmax(1)).sum() / positive.any(1).sum().clamp_min(1))
    return (terms[0] + terms[1]) / 2


class ClipLoss(nn.Module):
    """:func:`clip_loss` as a module, with the constructor, the call and the methods of open_clip's ``ClipLoss``.

    ``ClipLoss()(image_features, text_features, logit_scale)``, the features on the unit sphere, the scale already
    exponentiated.

    Args:
        local_loss: the rows of this process against the columns of all; else every process computes the whole loss.
        gather_with_grad: let gradients flow back to the processes that the features came from. Together with
            ``local_loss`` this is what gives the gradient of the whole batch (after averaging over processes) at the
            least work; without either, open_clip's default, it is that gradient over ``world_size``; with
            ``local_loss`` alone it is another one.
        cache_labels: keep what :meth:`get_ground_truth` made; the loss itself has no labels.
        rank, world_size: of this process, and how many there are; with one there is no communication.
        use_horovod: must be false.
        backend: as in :func:`clip_loss`.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod: expected False (torch.distributed is what is served), got True")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} for world_size {world_size}, got {rank}")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.backend = backend
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        images, texts = self.gathered(image_features, text_features)
        if self.world_size > 1 and self.local_loss:
            loss = self._local(image_features, text_features, images, texts, logit_scale, logit_bias)
        else:
            loss = clip_loss(images, texts, logit_scale, logit_bias, backend=self.backend)
        return {"contrastive_loss": loss} if output_dict else loss

    def _local(self, image_features, text_features, images, texts, logit_scale, logit_bias) -> Tensor:
        check_pairs("image_features", image_features, "text_features", text_features, more=False)
        scale, multiplier = as_logit_scale(logit_scale, image_features)
        offset = self.rank * len(image_features)
        terms = []
        for x, y in ((image_features, texts), (text_features, images)):
            rows, _ = cross_lse(x, [y], scale, multiplier, offset=offset, normalize=False, backend=self.backend)
            terms.append(mean_log_share(rows.neg, rows.pos))
        return _unseen((terms[0] + terms[1]) / 2, logit_bias)

    def gathered(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """The images and the texts of all processes, with as much of a gradient as the flags ask for."""
        if self.world_size == 1:
            return image_features, text_features
        both = []
        for t in (image_features, text_features):
            rows = gather_rows(t if self.gather_with_grad else t.detach(), self.world_size)
            if not self.gather_with_grad and not self.local_loss:
                first = self.rank * len(t)
                rows = torch.cat([rows[:first], t, rows[first + len(t) :]])
            both.append(rows)
        return both[0], both[1]

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both logit matrices, stored: for losses built on this one (distillation); :meth:`forward` needs none."""
        images, texts = self.gathered(image_features, text_features)
        if self.world_size > 1 and self.local_loss:
            per_image, per_text = logit_scale * image_features @ texts.T, logit_scale * text_features @ images.T
        else:
            per_image = logit_scale * images @ texts.T
            per_text = per_image.T
        if logit_bias is not None:
            per_image, per_text = per_image + logit_bias, per_text + logit_bias
        return per_image, per_text

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of every row's positive in what :meth:`get_logits` returns."""
        if self.prev_num_logits == num_logits and device in self.labels:
            return self.labels[device]
        first = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        labels = torch.arange(first, first + num_logits, device=device)
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    x, y = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    return {"image_features": F.normalize(x, dim=1), "text_features": F.normalize(y, dim=1), "logit_scale": 10.0}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    x = F.normalize(torch.randn(n, d, **tensor), dim=1)
    y = F.normalize(x + 0.1 * F.normalize(torch.randn(n, d, **tensor), dim=1), dim=1)
    return {"image_features": x, "text_features": y, "logit_scale": 50.0}


SPEC = LossSpec(
    name="clip",
    fused=clip_loss,
    reference=clip_reference,
    module=ClipLoss,
    inputs=_inputs,
    trained=_trained,
    features=("image_features", "text_features"),
    parameters=("logit_scale",),
)
