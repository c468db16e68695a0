"""Log-sum-exp of a matrix along either dimension with a bias: a program a row, or a program for some columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.gpu.device import on_device, rows_of
from ssl_kernels.backends.triton_kernels.logits import LOG2E


@triton.jit
def add_block(s, top, total, axis: tl.constexpr):
    """Logits in base 2 to a running maximum and the sum relative to it."""
    higher = tl.maximum(top, tl.max(s, axis))
    # where every logit is -inf there is nothing to be relative to
    least = tl.where(higher == float("-inf"), 0.0, higher)
    total = total * tl.math.exp2(top - least)
    if axis == 1:
        total += tl.sum(tl.math.exp2(s - least[:, None]), 1)
    else:
        total += tl.sum(tl.math.exp2(s - least[None, :]), 0)
    return higher, total


@triton.jit(do_not_specialize=["rows"])
def lse(
    logits, bias, out, multiplier: tl.float64, stride, rows, width,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of ``BLOCK_M`` rows over all columns (DIM 1), or of ``BLOCK_N`` columns over all rows (DIM 0)."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    KEPT: tl.constexpr = BLOCK_M if DIM == 1 else BLOCK_N
    kept = tl.program_id(0).to(tl.int64) * KEPT + tl.arange(0, KEPT)
    factor = tl.full([], multiplier * LOG2E, DTYPE)
    top = tl.full([KEPT], float("-inf"), DTYPE)
    total = tl.zeros([KEPT], DTYPE)
    if DIM == 1:
        for start in range(0, width, BLOCK_N):
            k = start + tl.arange(0, BLOCK_N)
            inside = (kept < rows)[:, None] & (k < width)[None, :]
            s = tl.load(logits + (kept[:, None] * stride + k[None, :]), mask=inside, other=0.0).to(DTYPE) * factor
            if bias is not None:
                s += tl.load(bias + k, mask=k < width, other=0.0)[None, :] * LOG2E
            top, total = add_block(tl.where(inside, s, float("-inf")), top, total, 1)
    else:
        for start in range(0, rows, BLOCK_M):
            i = start + tl.arange(0, BLOCK_M)
            inside = (i < rows)[:, None] & (kept < width)[None, :]
            row = i.to(tl.int64)[:, None] * stride
            s = tl.load(logits + (row + kept[None, :]), mask=inside, other=0.0).to(DTYPE) * factor
            if bias is not None:
                s += tl.load(bias + i, mask=i < rows, other=0.0)[:, None] * LOG2E
            top, total = add_block(tl.where(inside, s, float("-inf")), top, total, 0)
    there = kept < rows if DIM == 1 else kept < width
    tl.store(out + kept, (top + tl.log2(total)) / LOG2E, mask=there)


def biased_lse(logits: Tensor, bias: Tensor | None, multiplier: float, dim: int) -> Tensor:
    logits = rows_of(logits)
    rows, width = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(rows if dim == 1 else width, dtype=dtype, device=logits.device)
    # 4,096 entries at a time: of a row, or 32 rows of whole cache lines
    block_m, block_n = (1, min(4096, max(16, triton.next_power_of_2(width)))) if dim == 1 else (32, 128)
    with on_device(logits):
        lse[(triton.cdiv(len(out), block_m if dim == 1 else block_n),)](
            logits, None if bias is None else bias.contiguous(), out, multiplier, logits.stride(0), rows, width,
            DIM=dim, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=8 if dim == 1 else 4, enable_fp_fusion=True,
        )  # fmt: skip
    return out
