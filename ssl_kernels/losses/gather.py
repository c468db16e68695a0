"""Rows of several processes in one loss.

The gradient contract: every process takes the mean over its own rows, gradients flow back to the process that a row
came from, and the average over processes, as data-parallel training forms it, is the gradient of the whole batch.
Every process must hold as many rows as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_kernels.ops import cross_lse, self_lse


def check_gathering(gather_distributed: bool) -> None:
    """Raises ValueError where there is nothing to gather with."""
    if gather_distributed and not dist.is_available():
        raise ValueError(
            "gather_distributed is True but torch.distributed is not available. "
            "Please set gather_distributed=False or install a torch version with distributed support."
        )


def gather_rows(x: Tensor, world_size: int) -> Tensor:
    """The rows of all processes, one below the other in the order of their ranks, ``[world_size * N, D]``."""
    return _Gather.apply(x, world_size)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, world_size):
        rows = x.new_empty(world_size * len(x), *x.shape[1:])
        _collective("all_gather_single", "all_gather_into_tensor")(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx, g):
        mine = g.new_empty(len(g) // dist.get_world_size(), *g.shape[1:])
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(mine, g.contiguous())
        return mine, None


def _collective(name: str, former: str) -> Callable[..., Any]:
    """Of the two names, torch 2.13 warns of the second, and torch before it does not know the first."""
    return getattr(dist, name, None) or getattr(dist, former)


def shuffle_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows as ``x`` has, drawn at random from those of all processes, and what :func:`unshuffle_rows` needs.

    So that the statistics of batches, which every process takes for itself, tell nothing about who belongs together
    (MoCo, He et al. 2019, section 3.3). The order is that of process 0's generator.
    """
    size = world_size()
    everywhere = gather_rows(x, size) if size > 1 else x
    order = torch.randperm(len(everywhere), device=x.device)
    if size > 1:
        dist.broadcast(order, 0)
    first = dist.get_rank() * len(x) if size > 1 else 0
    mine = slice(first, first + len(x))
    return everywhere[order[mine]], order.argsort()[mine]


def unshuffle_rows(x: Tensor, back: Tensor) -> Tensor:
    """What became of the rows that :func:`shuffle_rows` dealt out, where they came from."""
    size = world_size()
    return (gather_rows(x, size) if size > 1 else x)[back]


def shift_rows(x: Tensor, *shifts: int) -> tuple[Tensor, ...]:
    """For every shift, the rows of the process with so many ranks less (round the ring), all sent at once."""
    return _Shift.apply(x, shifts)


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shifts):
        ctx.shifts = shifts
        return tuple(_exchange([x] * len(shifts), shifts))

    @staticmethod
    def backward(ctx, *grads):
        return torch.stack(_exchange(grads, [-s for s in ctx.shifts])).sum(0), None


def _exchange(tensors: Sequence[Tensor], shifts: Sequence[int]) -> list[Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    received = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    transfers = []
    for tag, (t, r, s) in enumerate(zip(tensors, received, shifts, strict=True)):
        transfers.append(dist.P2POp(dist.isend, t.contiguous(), (rank + s) % size, tag=tag))
        transfers.append(dist.P2POp(dist.irecv, r, (rank - s) % size, tag=tag))
    for request in dist.batch_isend_irecv(transfers):
        request.wait()
    return received


def broadcast_rows(x: Tensor, source: int) -> Tensor:
    """The rows of the process ``source``, on every process."""
    return _Broadcast.apply(x, source)


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source):
        ctx.source = source
        rows = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(rows, source)
        return rows

    @staticmethod
    def backward(ctx, g):
        g = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(g)
        return g if dist.get_rank() == ctx.source else torch.zeros_like(g), None


def lse_over_ranks(
    views: Sequence[Tensor], scale: Tensor | None, multiplier: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`ssl_kernels.ops.self_lse` of the views of all processes, as it is for the rows of this one."""
    n, size, views = len(views[0]), world_size(), list(views)
    if size == 1:
        return self_lse(views, scale, multiplier, period=n, backend=backend)
    everywhere = [gather_rows(z, size) for z in views]
    parts = []
    for a, z in enumerate(views):
        # In a view's own rows the diagonal is the row itself, in every other's it is a positive: a sweep for each,
        # combined in float64, so that no digit is lost between numbers as large as 1/tau
        sides = [
            cross_lse(z, [rows], scale, multiplier, offset=dist.get_rank() * n, backend=backend)[0]
            for rows in (*everywhere[a:], *everywhere[:a])
        ]
        neg = torch.stack([side.neg + side.top.double() for side in sides]).logsumexp(0)
        pos = torch.stack([side.pos + side.top.double() for side in sides[1:]])
        top = torch.cat([neg[None], pos]).detach().amax(0).to(sides[0].neg.dtype)
        parts.append(((neg - top).to(top.dtype), (pos - top).to(top.dtype), top))
    negs, poss, tops = zip(*parts, strict=True)
    return torch.cat(negs), torch.cat(poss, dim=1), torch.cat(tops)


def world_size() -> int:
    """How many processes there are; one where nobody set up ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
