"""What the kernels are measured against: eager code of the same dtype, and the truth in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(dtype: torch.dtype, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The matrix product of eager code."""
    return TF32Product.apply if dtype == F32 and precision != "highest" else torch.matmul


class TF32Product(torch.autograd.Function):
    """A product whose operands are rounded to tf32, to nearest: the kindest reading of float32 at "high"."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return TF32Product.round(a) @ TF32Product.round(b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        round_ = TF32Product.round
        return round_(g) @ round_(b).T, round_(a).T @ round_(g)

    @staticmethod
    def round(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(F32)


def assert_no_worse(name: str, ours: Tensor, theirs: Tensor, true: Tensor, last_bits: float) -> None:
    """At most twice eager's error, and finite where the truth is; ``last_bits`` for where eager happens to be exact."""
    ours, theirs, true = (t.double() for t in (ours, theirs, true))
    finite = true.isfinite()
    assert torch.equal(ours.isfinite(), finite), name
    error, peers = (ours - true)[finite].norm(), (theirs - true)[finite].norm()
    assert error <= 2 * peers + last_bits, f"{name}: {error:.2e}, eager has {peers:.2e}"
