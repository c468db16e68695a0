"""Log-sum-exp with a bias along either dimension, by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.cuda.native import DTYPES, C, address, stream
from ssl_kernels.backends.gpu.device import on_device, rows_of


def biased_lse(logits: Tensor, bias: Tensor | None, multiplier: float, dim: int) -> Tensor:
    logits, bias = rows_of(logits), None if bias is None else bias.contiguous()
    rows, width = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(rows if dim == 1 else width, dtype=dtype, device=logits.device)
    with on_device(logits):
        C.biased_lse(
            address(logits), DTYPES[logits.dtype], rows, logits.stride(0), width, address(bias), multiplier, dim == 1,
            address(out), stream(logits.device),
        )  # fmt: skip
    return out
