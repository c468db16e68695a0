"""Distances on the sphere from given rows: Euclid's by the C++ kernels, other norms as passes of torch's.

So are those of float64 rows: what the kernels are for is to be wider than the rows.
"""

from __future__ import annotations

import torch

from ssl_kernels.backends.cpu import native
from ssl_kernels.backends.cpu.native import DTYPES, rows
from ssl_kernels.backends.reference.log_distance import log_distance as passes
from ssl_kernels.backends.reference.log_distance import log_distance_backward as backward_passes


def log_distance(x, index, first, p, eps):
    if p != 2 or x.dtype == torch.float64:
        return passes(x, index, first, p, eps)
    x, index = rows(x), index.contiguous()
    value = torch.empty(len(index), dtype=torch.float32)
    kept = torch.empty(len(x), dtype=torch.float64), torch.empty(len(index), dtype=torch.float64)
    native.C.log_distance(*_call(x, index, first, eps), value.data_ptr(), *_results(*kept))
    return value, *kept


def log_distance_backward(dvalue, x, index, norm, distance, first, p, eps):
    if p != 2 or x.dtype == torch.float64:
        return backward_passes(dvalue, x, index, norm, distance, first, p, eps)
    x, index, dvalue = rows(x), index.contiguous(), dvalue.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype)
    out = dvalue.data_ptr(), dx.data_ptr()
    native.C.log_distance_backward(*_call(x, index, first, eps), 0, *_results(norm, distance), *out)
    return dx


def _call(x, index, first, eps):
    return (x.data_ptr(), *x.shape, x.stride(0)), DTYPES[x.dtype], index.data_ptr(), first, len(index), eps


def _results(norm, distance):
    return norm.data_ptr(), distance.data_ptr(), torch.get_num_threads()
