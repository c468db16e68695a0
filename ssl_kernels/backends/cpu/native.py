"""The compiled module, and tensors as it takes them: addresses, numbers of rows, strides, codes of dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_kernels._native import load

C: Any
C, _reason = load()
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PRECISIONS = {"highest": 0, "high": 1, "medium": 2}


def why_not() -> str | None:
    return _reason


def numbers(
    x: Tensor, scale: Tensor | None, multiplier: float, normalize: bool, coarse: bool = False
) -> tuple[int, int, int, bool, float, int]:
    """What every call says of its numbers: dtype, precision, width, whether to normalise, scale, threads."""
    factor = multiplier if scale is None else multiplier * scale.item()
    precision = max(_PRECISIONS[torch.get_float32_matmul_precision()], _PRECISIONS["high" if coarse else "highest"])
    return DTYPES[x.dtype], precision, x.shape[1], normalize, factor, torch.get_num_threads()


def results_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows(t: Tensor) -> Tensor:
    """``[N, D]`` whose columns are contiguous."""
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def part(t: Tensor, gradient: Tensor | None = None) -> tuple[int, int, int, int]:
    """Data, gradient, rows, stride."""
    return t.data_ptr(), 0 if gradient is None else gradient.data_ptr(), t.shape[0], t.stride(0)


def ask_for_pages(t: Tensor) -> None:
    """Before all of a large tensor is written: a call for all of its pages, where they would come one by one."""
    C.ask_for_pages(t.data_ptr(), t.nbytes, torch.get_num_threads())
