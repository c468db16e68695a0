"""What the kernels share that go once through memory and multiply no matrices."""

from __future__ import annotations

from ssl_kernels.backends.gpu.device import on_device, rows_of

__all__ = ["on_device", "rows_of", "streamed_rows"]


def streamed_rows(width: int) -> dict[str, int | bool]:
    """About 2,048 entries of each of two operands a program; wider rows are read piece by piece."""
    block = min(2048, max(16, 1 << (width - 1).bit_length()))
    return {"ROWS": min(32, 2048 // block), "BLOCK_D": block, "num_warps": 4, "enable_fp_fusion": True}
