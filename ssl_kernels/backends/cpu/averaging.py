"""Exponential moving averages: one pass over the memory of all tensors."""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import DTYPES


def average_(target, source, momentum, number, copied, rounding):
    m = number if momentum is None else momentum.item()
    pairs, copies, first = [], [], 0
    averaged = len(target) - copied
    for k, (t, s) in enumerate(zip(target, source, strict=True)):
        count = t.numel()
        copy = m == 0 or k >= averaged
        if t.dtype not in DTYPES:
            copies.append((t.data_ptr(), s.data_ptr(), t.nbytes))
        elif copy or m != 1:
            pairs.append((t.data_ptr(), s.data_ptr(), count, DTYPES[t.dtype], DTYPES[s.dtype], copy, first))
        first += count
    seed = (0, 0) if rounding is None else tuple(rounding.tolist())
    native.C.average(pairs, copies, m, 1 - m, seed, torch.get_num_threads())
    if rounding is not None:
        rounding[1] += 1
