r"""Sinkhorn-Knopp: assignments of samples to prototypes of equal sums, as a centre of the teacher's logits.

SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882, eq. 3-5) and DINOv2 (Oquab et al. 2023,
https://arxiv.org/abs/2304.07193) scale :math:`e^{s_{ik} / \tau}` by turns so that all prototypes, then all samples have
equal sums. In logarithms, with a bias f a prototype and g a sample,

.. math:: f_k \leftarrow -\log \sum_i e^{s_{ik} / \tau + g_i}, \qquad
          g_i \leftarrow -\log \sum_k e^{s_{ik} / \tau + f_k},

and since the samples come last, the assignment is :math:`\mathrm{softmax}_k(s_{ik} / \tau + f_k)`: a softmax of centred
logits, with the centre :math:`c_k = -\tau f_k`. So whatever takes a centre takes this one, and the assignments need not
be stored; nothing overflows at any temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_kernels.losses.gather import world_size
from ssl_kernels.ops import biased_lse, check_not_empty, check_rows, check_width, prototype_lse

__all__ = ["fused_sinkhorn_center", "sinkhorn_center"]


def sinkhorn_center(
    teacher_logits: Tensor,
    teacher_temp: float = 0.05,
    iterations: int = 3,
    *,
    gather_distributed: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""The centre that turns the softmax of a teacher's logits into Sinkhorn-Knopp's assignments.

    ``((teacher_logits - center) / teacher_temp).softmax(1)`` are the assignments; ``dino_loss`` and ``ibot_patch_loss``
    take the centre as it is. ``2 * iterations - 1`` readings of the logits.

    Args:
        teacher_logits: of all samples that share the prototypes equally, ``[N, K]``, float32/64, bfloat16 or float16.
        teacher_temp: tau (SwAV's epsilon), above 0.
        iterations: how often prototypes are given equal sums, and samples after them.
        gather_distributed: over the samples of all processes, where there are several; each may hold any number.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        ``[1, K]``, float32 (float64 for float64); its mean is 0, as a constant changes nothing. No gradient.

    Raises:
        ValueError: no samples or prototypes, a temperature not above 0, fewer than one iteration, unknown backend.
        TypeError: not a floating-point tensor.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882. Memory beyond the logits: one number a row and a column.
    """
    check_rows("teacher_logits", teacher_logits)
    check_not_empty("teacher_logits", teacher_logits)
    x = teacher_logits.detach()

    def lse(bias: Tensor | None, dim: int) -> Tensor:
        return biased_lse(x, bias, 1 / teacher_temp, dim=dim, backend=backend)

    return _center(lse, teacher_temp, iterations, gather_distributed)


def fused_sinkhorn_center(
    x_teacher: Tensor,
    prototypes: Tensor,
    teacher_temp: float = 0.05,
    iterations: int = 3,
    *,
    gather_distributed: bool = True,
    backend: str | None = None,
) -> Tensor:
    """:func:`sinkhorn_center` of the logits ``x_teacher @ prototypes.T``, which are not stored.

    Args:
        x_teacher: ``[N, D]``; ``prototypes``: ``[K, D]``, alike.
        teacher_temp, iterations, gather_distributed, backend: as in :func:`sinkhorn_center`.

    Returns:
        ``[1, K]``, as :func:`sinkhorn_center`. O(N D + K) memory beyond the inputs.

    Raises:
        ValueError, TypeError: as :func:`sinkhorn_center`.
    """
    check_rows("x_teacher", x_teacher)
    check_not_empty("x_teacher", x_teacher)
    check_width("prototypes", prototypes, "x_teacher", x_teacher)
    check_not_empty("prototypes", prototypes)
    x, w = x_teacher.detach(), prototypes.detach()

    def lse(bias: Tensor | None, dim: int) -> Tensor:
        return prototype_lse(x, w, bias, 1 / teacher_temp, dim=dim, backend=backend)

    return _center(lse, teacher_temp, iterations, gather_distributed)


@torch.no_grad()
def _center(
    lse: Callable[[Tensor | None, int], Tensor], temp: float, iterations: int, gather_distributed: bool
) -> Tensor:
    if not temp > 0:
        raise ValueError(f"teacher_temp: expected a number above 0, got {temp}")
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    several = gather_distributed and world_size() > 1

    def against_prototypes(g: Tensor | None) -> Tensor:
        f = lse(g, 0)
        f = _over_processes(f) if several else f
        return f.mean() - f  # one constant for all, the global shift: it cancels, and keeps the numbers small

    f = against_prototypes(None)
    for _ in range(iterations - 1):
        f = against_prototypes(-lse(f, 1))
    return -temp * f[None]


def _over_processes(lse: Tensor) -> Tensor:
    """The log-sum-exp over what every process has of it."""
    top = lse.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX)
    total = (lse - top).exp()
    dist.all_reduce(total)
    return top + total.log()
