r"""InfoNCE (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748), in the batch, with negatives, or with a queue.

With queries ``q``, their positives ``k`` and the negatives :math:`n_j`, all on the unit sphere:

.. math:: \mathcal L = -\frac1N \sum_i \log \frac{e^{q_i \cdot k_i / \tau}}
          {e^{q_i \cdot k_i / \tau} + \sum_j e^{q_i \cdot n_j / \tau}}.

Without negatives of their own the queries have those of the batch, the positives of the others. MoCo (He et al. 2019,
https://arxiv.org/abs/1911.05722) has a queue of older keys there, which gets no gradient: then the loss and the
gradient of the queries come out of one sweep over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.sphere import EPS, unit_rows
from ssl_kernels.losses.temperature import as_factor, as_scale, check_temperature
from ssl_kernels.ops import (
    FLOATS,
    accumulate_dtype,
    check_alike,
    check_pairs,
    check_width,
    cosine,
    cross_lse,
    mean_log_share,
)

__all__ = ["InfoNCELoss", "info_nce_loss", "info_nce_reference"]


def info_nce_loss(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    offset: int = 0,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of every query's positive among negatives (InfoNCE; MoCo with a queue), O(N D) memory.

    Args:
        query: ``[N, D]``, float32/64, bfloat16 or float16; normalised here, as everything else that comes in.
        positive: ``[N, D]`` of the same dtype and device. Without ``negatives`` it may be longer: the positive of query
            ``i`` is row ``offset + i``, and all others are its negatives.
        negatives: ``[K, D]``, shared by all queries (a queue; one without a gradient is swept once only), or
            ``[N, K, D]``, K for each query; of the same dtype and device. ``K`` may be 0.
        temperature: tau, a float or a one-element tensor (then it gets a gradient); ``|tau| >= 1e-8``.
        offset: the row of query 0's positive (local queries against keys gathered from several machines).
        normalize: False to take all rows as they are.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.
            Negatives of each query's own, as large as the logits, are PyTorch's business on all of them.

    Returns:
        The mean over the queries, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices disagree, fewer positives than queries, ``|temperature| < 1e-8`` or NaN,
            unknown or unavailable backend; the message names what came and what was expected.
        TypeError: not floating-point tensors.

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748. Reference: :func:`info_nce_reference`.
    """
    _check(query, positive, negatives, offset)
    scale, multiplier = as_scale(temperature, query)
    if negatives is None:
        rows, _ = cross_lse(query, [positive], scale, multiplier, offset=offset, normalize=normalize, backend=backend)
        return mean_log_share(rows.neg, rows.pos)
    # Autocast lets dtypes differ. Widened here, once, the two parts of a gradient meet before they are rounded.
    query, positive = (t.to(torch.promote_types(t.dtype, negatives.dtype)) for t in (query, positive))
    factor = as_factor(scale, multiplier, query)
    if normalize:
        products = cosine(query, positive, EPS, backend=backend)
    else:
        products = _products(query, positive[:, None], normalize).squeeze(1)
    pos = factor * products
    if negatives.dim() == 3:
        less = (factor * _products(query, negatives, normalize)).logsumexp(1) - pos
    elif len(negatives) == 0:
        less = pos - torch.inf
    else:
        rows, _ = cross_lse(query, [negatives], scale, multiplier, normalize=normalize, backend=backend)
        # The positive is not in the matrix. In float64, so that no digit is lost between two numbers as large as 1/tau.
        less = rows.neg + (rows.top - pos)
    return F.softplus(less, 1.0, 40.0).mean().to(products.dtype)


def _products(query: Tensor, others: Tensor, normalize: bool) -> Tensor:
    """The products ``[N, K]`` of every query with its own ``[N, K, D]``."""
    if normalize:
        q, n = unit_rows([query]), unit_rows([others.flatten(0, 1)]).view(others.shape)
    else:
        q, n = (t.to(accumulate_dtype(t.dtype)) for t in (query, others))
    with torch.autocast(q.device.type, enabled=False):
        return (n.to(q.dtype) @ q[:, :, None]).squeeze(2)


def _check(query: Tensor, positive: Tensor, negatives: Tensor | None, offset: int) -> None:
    if negatives is not None and offset:
        raise ValueError(f"offset: expected 0 beside negatives, got {offset}")
    check_pairs("query", query, "positive", positive, offset, more=negatives is None)
    if negatives is None:
        return
    if not isinstance(negatives, Tensor):
        raise TypeError(f"negatives: expected a tensor, got {type(negatives).__name__}")
    if negatives.dim() == 2:
        check_width("negatives", negatives, "query", query)
        return
    n, d = query.shape
    if negatives.dim() != 3 or negatives.shape[0] != n or negatives.shape[2] != d:
        raise ValueError(f"negatives: expected shape [K, {d}] or [{n}, K, {d}], got {tuple(negatives.shape)}")
    if negatives.dtype not in FLOATS:
        raise TypeError(f"negatives: expected float32, float64, bfloat16 or float16, got {negatives.dtype}")
    check_alike("negatives", negatives, "query", query)


def info_nce_reference(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    offset: int = 0,
    normalize: bool = True,
) -> Tensor:
    """The same as :func:`info_nce_loss`, as MoCo's pseudo-code has it, with all logits and plain autograd."""
    _check(query, positive, negatives, offset)
    check_temperature(temperature)
    q, k = (F.normalize(t, dim=1) if normalize else t for t in (query, positive))
    if negatives is None:
        return F.cross_entropy(q @ k.T / temperature, torch.arange(len(q), device=q.device) + offset)
    n = F.normalize(negatives, dim=-1) if normalize else negatives
    products = q @ n.T if n.dim() == 2 else torch.einsum("nd,nkd->nk", q, n)
    logits = torch.cat([(q * k).sum(1, keepdim=True), products], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


class InfoNCELoss(nn.Module):
    """:func:`info_nce_loss` as a module: ``InfoNCELoss(temperature=0.1)(query, positive, negatives)``.

    Args:
        temperature: tau, a float, or a one-element tensor or ``nn.Parameter`` to learn it.
        backend: as in :func:`info_nce_loss`.
    """

    def __init__(self, temperature: float | Tensor = 0.1, *, backend: str | None = None) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.backend = backend

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor | None = None) -> Tensor:
        return info_nce_loss(query, positive, negatives, self.temperature, backend=self.backend)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    return {"query": torch.randn(n, d, **tensor), "positive": torch.randn(n, d, **tensor), "temperature": 0.1}


def _trained(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    q = torch.randn(n, d, **tensor)
    return {"query": q, "positive": q + 0.1 * torch.randn(n, d, **tensor), "temperature": 0.02}


def _with_queue(draw: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
        return draw(n, d, **tensor) | {"negatives": F.normalize(torch.randn(3 * n + 1, d, **tensor), dim=1)}

    return inputs


SPEC = LossSpec(
    name="info_nce",
    fused=info_nce_loss,
    reference=info_nce_reference,
    module=InfoNCELoss,
    inputs=_inputs,
    trained=_trained,
    features=("query", "positive"),
    parameters=("temperature",),
    variants=(
        LossSpec(
            name="info_nce_queue",
            fused=info_nce_loss,
            reference=info_nce_reference,
            module=InfoNCELoss,
            inputs=_with_queue(_inputs),
            trained=_with_queue(_trained),
            features=("query", "positive"),
            parameters=("temperature",),
        ),
    ),
)
