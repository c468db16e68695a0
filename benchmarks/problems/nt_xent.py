"""NT-Xent: two views of ``n`` samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems.problem import EAGER, Problem
from ssl_kernels import nt_xent_reference


def in_four_blocks(z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5) -> Tensor:
    """NT-Xent as the field's library of methods computes it: a product a pair of views, diagonals cut out by a mask."""
    n = len(z1)
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    off = ~torch.eye(n, dtype=torch.bool, device=z1.device)
    s11 = (z1 @ z1.T / temperature)[off].view(n, -1)
    s12 = z1 @ z2.T / temperature
    s21 = z2 @ z1.T / temperature
    s22 = (z2 @ z2.T / temperature)[off].view(n, -1)
    logits = torch.cat([torch.cat([s12, s11], 1), torch.cat([s21, s22], 1)])
    return F.cross_entropy(logits, torch.arange(n, device=z1.device).repeat(2))


def without_copies(z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5) -> Tensor:
    """NT-Xent with as few sweeps over the matrix as eager PyTorch allows; what ``torch.compile`` makes most of."""
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ (z / temperature).T
    logits.diagonal().fill_(float("-inf"))
    positive = (z[:n] * z[n:]).sum(1) / temperature
    return logits.logsumexp(1).mean() - positive.mean()


class _Chunked(torch.autograd.Function):
    """The rows of the matrix a block at a time, recomputed in backward: O(N D) memory without a kernel of one's own."""

    ROWS = 512

    @staticmethod
    def forward(ctx, z, scale):
        n = len(z) // 2
        lse = torch.cat([_Chunked.logits(z, scale, i).logsumexp(1) for i in range(0, len(z), _Chunked.ROWS)])
        ctx.save_for_backward(z, lse)
        ctx.scale = scale
        positive = scale * (z[:n] * z[n:]).sum(1, dtype=lse.dtype)
        return lse.mean() - positive.mean()

    @staticmethod
    def logits(z, scale, i):
        s = (z[i : i + _Chunked.ROWS] @ z.T).to(torch.promote_types(z.dtype, torch.float32)).mul_(scale)
        s.diagonal(i).fill_(float("-inf"))
        return s

    @staticmethod
    def backward(ctx, upstream):
        z, lse = ctx.saved_tensors
        dz = torch.zeros_like(z, dtype=lse.dtype)
        for i in range(0, len(z), _Chunked.ROWS):
            rows = slice(i, i + _Chunked.ROWS)
            p = _Chunked.logits(z, ctx.scale, i).sub_(lse[rows, None]).exp_().to(z.dtype)
            dz[rows] += p @ z
            dz += p.T @ z[rows]
        dz -= 2 * z.roll(len(z) // 2, 0)
        return (dz * (upstream * ctx.scale / len(z))).to(z.dtype), None


def in_chunks(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent in plain PyTorch that never holds the whole matrix either."""
    return _Chunked.apply(F.normalize(torch.cat([z1, z2]), dim=1), 1 / temperature)


PROBLEMS = {
    "nt_xent": Problem(
        "nt_xent",
        rivals={
            EAGER: nt_xent_reference,  # what an expert writes
            "eager, few sweeps": without_copies,
            "eager, four blocks": in_four_blocks,
            "eager, in chunks": in_chunks,
        },
        compiled=(EAGER, "eager, few sweeps", "eager, four blocks"),
        sizes=(
            (32, 128), (64, 128), (128, 128), (256, 128), (1024, 128), (2048, 512), (4096, 128), (4096, 512),
            (8192, 128),
        ),
        quick=((256, 128), (1024, 128)),
        gpu=tuple((n, d) for n in (4096, 16384, 32768, 131072) for d in (128, 256, 512, 1024)),
        exact=in_chunks,
        synchronise=("eager, four blocks",),  # a boolean mask asks how many elements it has
    )
}  # fmt: skip
