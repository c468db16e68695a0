"""Rows by class, without reading a label back from the device: every number of classes up to that of the rows fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels.ops import accumulate_dtype
from ssl_kernels.ops.library import once


def check_labels(name: str, labels: Tensor, rows: Tensor) -> None:
    """Integers, one for every row, on the rows' device."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a tensor of integers, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected integers, got {labels.dtype}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{name}: expected shape {tuple(rows.shape[:1])}, one a row, got {tuple(labels.shape)}")
    if labels.device != rows.device:
        raise ValueError(f"{name}: expected device {rows.device} as the rows, got {labels.device}")


def dense_classes(labels: Tensor) -> Tensor:
    """Any integers as ``0, 1, 2 ...`` in their order: the classes are then fewer than the labels."""
    ordered, order = labels.sort()
    first = torch.ones_like(ordered, dtype=torch.int64)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(first).scatter(0, order, first.cumsum(0) - 1)


def class_sizes(classes: Tensor, count: int | None = None) -> Tensor:
    """How many rows each of ``count`` classes has, by default of as many as there are rows."""
    sizes = classes.new_zeros(len(classes) if count is None else count)
    return sizes.scatter_add(0, classes, torch.ones_like(classes))


def class_sums(rows: Tensor, classes: Tensor, count: int | None = None) -> Tensor:
    """The sum of each class's rows, ``[count, D]`` in float32 at least; always the same bits."""
    rows = rows.to(accumulate_dtype(rows.dtype))
    sums = rows.new_zeros(len(rows) if count is None else count, rows.shape[1])
    if rows.is_cuda:  # here index_add adds in any order, and this sorts
        return sums.index_put((classes,), rows, accumulate=True)
    return sums.index_add(0, classes, rows)


def mean_products(z: Tensor, classes: Tensor, sizes: Tensor) -> Tensor:
    """The mean of each row's products with the others of its class, summed over the rows; a float64 scalar.

    Of a class with the sum ``C`` and ``n`` rows that is ``(|C|^2 - sum |z|^2) / (n - 1)``: no pair is looked at.
    """
    return _MeanProducts.apply(z, classes, sizes)


class _MeanProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, classes, sizes):
        wide = z.double()
        sums = class_sums(wide, classes)
        shares = torch.where(sizes > 1, 1.0 / (sizes - 1).clamp_min(1).double(), 0.0)
        ctx.save_for_backward(z, classes, sums.to(z.dtype), shares.to(z.dtype))
        of_sums, of_rows = (torch.linalg.vector_norm(t, dim=1).square() for t in (sums, wide))
        return (shares * of_sums).sum() - (shares[classes] * of_rows).sum()

    @staticmethod
    def backward(ctx, g):
        return once(_mean_products_backward, g, *ctx.saved_tensors), None, None


def _mean_products_backward(g, z, classes, sums, shares):
    return sums[classes].sub_(z).mul_((2 * g.to(z.dtype) * shares)[classes, None])


def positives_and_negatives(z: Tensor, factor: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Row log-sum-exps of ``factor * z @ z.T`` over the other rows of the class, and over those of other classes.

    A block of rows at a time, formed again in backward: O(N D) memory. ``-inf`` where there is no such row.
    """
    return _PositivesAndNegatives.apply(z, factor, classes)


def pair_terms(z: Tensor, factor: Tensor, classes: Tensor) -> Tensor:
    """For every row, the sum over the others of its class of ``-log(e^s / (e^s + the row's negatives))``.

    Of blocks of rows as :func:`positives_and_negatives`; 0 where there is no such row.
    """
    return _PairTerms.apply(z, factor, classes)


BLOCK = 1 << 22  # entries that are there at a time, 16 MiB in float32


class _PositivesAndNegatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, factor, classes):
        of_blocks = []
        for _, products, positive, negative in _blocks(z, classes):
            s = products * factor.to(z.dtype)
            of_blocks.append([s.masked_fill(~mask, float("-inf")).logsumexp(1) for mask in (positive, negative)])
        pos, neg = map(torch.cat, zip(*of_blocks, strict=True))
        ctx.save_for_backward(z, factor, classes, pos, neg)
        return pos, neg

    @staticmethod
    def backward(ctx, dpos, dneg):
        z, factor, classes, pos, neg = ctx.saved_tensors

        def entries(rows, s, positive, negative):
            ds = dpos[rows, None] * (s - pos[rows, None]).exp().masked_fill(~positive, 0.0)
            return ds + dneg[rows, None] * (s - neg[rows, None]).exp().masked_fill(~negative, 0.0)

        return *once(partial(_gradients, entries, classes), z, factor), None


class _PairTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, factor, classes):
        of_blocks = []
        for _, products, positive, negative in _blocks(z, classes):
            s = products * factor.to(z.dtype)
            neg = s.masked_fill(~negative, float("-inf")).logsumexp(1)
            of_blocks.append([F.softplus(neg[:, None] - s, 1.0, 40.0).masked_fill(~positive, 0.0).sum(1), neg])
        terms, neg = map(torch.cat, zip(*of_blocks, strict=True))
        ctx.save_for_backward(z, factor, classes, neg)
        return terms

    @staticmethod
    def backward(ctx, g):
        z, factor, classes, neg = ctx.saved_tensors

        def entries(rows, s, positive, negative):
            shares = torch.sigmoid(neg[rows, None] - s).masked_fill(~positive, 0.0)
            spread = (s - neg[rows, None]).exp().masked_fill(~negative, 0.0)
            return g[rows, None] * (shares.sum(1, keepdim=True) * spread - shares)

        return *once(partial(_gradients, entries, classes), z, factor), None


def _gradients(entries: Callable[..., Tensor], classes: Tensor, z: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``z`` and ``factor``, ``entries`` being the gradient of a block of logits."""
    by = factor.to(z.dtype)
    dz, dfactor = torch.zeros_like(z), torch.zeros_like(factor)
    for rows, products, positive, negative in _blocks(z, classes):
        ds = entries(rows, products * by, positive, negative)
        dfactor += (ds * products).sum()
        with torch.autocast(z.device.type, enabled=False):
            dz[rows] += by * (ds @ z)
            dz += by * (ds.T @ z[rows])
    return dz, dfactor


def _blocks(z: Tensor, classes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rows, their products with all rows, and which of these are of the same class, the row itself apart, and not."""
    step = max(1, BLOCK // len(z))
    i = torch.arange(len(z), device=z.device)
    for first in range(0, len(z), step):
        rows = slice(first, min(first + step, len(z)))
        with torch.autocast(z.device.type, enabled=False):
            products = z[rows] @ z.T
        same = classes[rows, None] == classes
        yield rows, products, same & (i[rows, None] != i), ~same
