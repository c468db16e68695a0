"""Exponential moving averages of any number of tensors in one launch, whose parameters are their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssl_kernels.backends.cuda.native import DTYPES, C, address, number, stream
from ssl_kernels.backends.gpu.device import on_device


def average_(
    target: Sequence[Tensor], source: Sequence[Tensor], momentum: Tensor | None, keep: float, copied: int,
    rounding: Tensor | None,
) -> None:  # fmt: skip
    pairs, copies, first = [], [], 0
    averaged = len(target) - copied
    for k, (t, s) in enumerate(zip(target, source, strict=True)):
        count = t.numel()
        if count == 0:
            continue
        if t.dtype in DTYPES:
            pairs.append((t.data_ptr(), s.data_ptr(), count, first, DTYPES[t.dtype], DTYPES[s.dtype], k >= averaged))
        else:
            copies.append((t.data_ptr(), s.data_ptr(), t.nbytes))
        first += count
    if momentum is not None and momentum.device != target[0].device:
        keep, momentum = momentum.item(), None  # only a CPU's number comes here, of a compiled graph
    with on_device(target[0]):
        C.average(pairs, copies, number(momentum), keep, 1 - keep, address(rounding), stream(target[0].device))
