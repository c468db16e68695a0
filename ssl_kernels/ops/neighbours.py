"""The nearest of another set of rows, by inner product: KoLeo's part of the waist, and nearest-neighbour lookups'."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import check_not_empty, check_parts, check_rows
from ssl_kernels.ops.library import define, plain


def nearest(
    x: Tensor, y: Tensor, *, skip: int | None = None, normalize: bool = True, backend: str | None = None
) -> Tensor:
    r"""For every row of ``x`` the index of the row of ``y`` with the largest inner product, in O((M + K) D) memory.

    Among equal products the lowest index is the answer. Rows with NaN or infinities get the index of some row. There is
    no gradient: an index has none.

    Args:
        x, y: ``[M, D]`` and ``[K, D]`` of one dtype and device, float32/64, bfloat16 or float16.
        skip: leave out the entries ``(i, i + skip)``: 0 where ``y`` is ``x`` and no row may be its own neighbour; None
            leaves out nothing. A row without any candidate (``K = 1``) answers ``i + skip``.
        normalize: divide each row by ``max(norm, 1e-12)`` first (as ``torch.nn.functional.normalize`` does).
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        int64 ``[M]``.

    Raises:
        ValueError: shapes, dtypes or devices disagree, unknown backend.
        TypeError: not floating-point tensors.
    """
    arguments = x.detach(), y.detach(), skip, normalize, backend or backends.override()
    if plain([x, y]):
        return _nearest(*arguments)
    return torch.ops.ssl_kernels.nearest(*arguments)


def _check(x: Tensor, y: Tensor) -> None:
    check_rows("x", x)
    check_not_empty("x", x)
    check_parts("y", [y], "x", x)


def _fake(x, y, skip, normalize, backend):
    _check(x, y)
    return x.new_empty(x.shape[0], dtype=torch.int64)


def _nearest(x, y, skip, normalize, backend):
    _check(x, y)
    return backends.operation(backend, x.device, "nearest")(x, y, skip, normalize)


define(
    "nearest(Tensor x, Tensor y, SymInt? skip, bool normalize, str backend) -> Tensor index",
    _nearest,
    _fake,
    widen=2,
)
