"""InfoNCE: ``n`` queries against one another's positives, and MoCo's, against a queue of 65,536 keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem
from ssl_kernels import info_nce_reference

QUEUE = 65536


def concatenated(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """As MoCo's code has it: the queue copied (it is about to be written to), the logits put one beside the other."""
    q, k = F.normalize(query, dim=1), F.normalize(positive, dim=1)
    pos = (q * k).sum(1, keepdim=True)
    logits = torch.cat([pos, q @ negatives.clone().T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def not_concatenated(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """With as few sweeps over the logits as eager PyTorch allows."""
    q = F.normalize(query, dim=1) / temperature
    pos = (q * F.normalize(positive, dim=1)).sum(1)
    return (torch.logaddexp((q @ negatives.T).logsumexp(1), pos) - pos).mean()


def in_float32(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """MoCo's code in float32, whatever comes in: what a queue of 16 bits is to be compared with."""
    return concatenated(query.float(), positive.float(), negatives.float(), temperature)


def _inputs(n: int, d: int, **tensor: Any) -> dict[str, Any]:
    q, keys = torch.randn(n, d, **tensor), torch.randn(QUEUE, d, **tensor)
    positive = q + torch.randn(n, d, **tensor)
    return {"query": q, "positive": positive, "negatives": F.normalize(keys, dim=1), "temperature": 0.2}


def without_sweeps(query: Tensor, positive: Tensor, temperature: float) -> Tensor:
    q, k = F.normalize(query, dim=1) / temperature, F.normalize(positive, dim=1)
    return (q @ k.T).logsumexp(1).mean() - (q * k).sum(1).mean()


PROBLEMS = {
    "info_nce": Problem(
        "info_nce",
        rivals={EAGER: info_nce_reference, "eager, few sweeps": without_sweeps},
        compiled=(EAGER, "eager, few sweeps"),
        sizes=((256, 128), (4096, 128)),
        entries=lambda n: n * n,
        gpu=((16384, 128),),
        units=(1, 4),
        exponentials=(1, 2),
    ),
    "moco": Problem(
        "info_nce_queue",
        rivals={
            EAGER: concatenated,
            "eager, float32": in_float32,
            "eager, not concatenated": not_concatenated,
        },
        compiled=(EAGER, "eager, not concatenated"),
        sizes=((256, 128), (1024, 128), (4096, 128)),
        quick=((16, 16),),
        inputs=_inputs,
        features=("query",),  # keys come from the momentum encoder
        entries=lambda n: n * QUEUE,
        gpu=tuple((n, 128) for n in (256, 512, 1024, 2048, 4096)),
        units=(1, 2),  # the gradient comes with the forward sweep
        exponentials=(1, 1),
    ),
}
