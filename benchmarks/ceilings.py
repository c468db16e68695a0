"""What the machine can do at best, measured: the rates that a kernel's time is compared with."""

from __future__ import annotations

import torch

from benchmarks.harness import interleave, matmul_precision

MATMULS = {
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
    "float32 high": (torch.float32, "high"),
    "float32 highest": (torch.float32, "highest"),
    "float64": (torch.float64, "highest"),
}
SIZES = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough for the best rate
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}


def ceilings(device: str, seconds: float = 15.0, size: int | None = None) -> dict[str, float]:
    """Products in FLOP/s by dtype and precision, ``copy`` in bytes/s (read plus written), ``exp2`` per second.

    Args:
        seconds: about how long to measure, all in all.
        size: of the matrices; the copy shrinks with it.
    """
    rates = {}
    n = size or SIZES[device]
    each = seconds / (len(MATMULS) + 2)
    for name, (dtype, precision) in MATMULS.items():
        # double takes a smaller one: it only has to tell how long a check will take
        side = n // 2 if dtype == torch.float64 else n
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with matmul_precision(precision):
            rates[name] = 2 * side**3 / _seconds(lambda a=a, b=b: a @ b, device, each)
    rates["copy"] = _copy(device, COPY_BYTES[device] // 4 * n // SIZES[device], each)
    rates["exp2"] = _exp2(device, each)
    return rates


def _copy(device: str, elements: int, seconds: float) -> float:
    source, target = torch.randn(elements, device=device), torch.empty(elements, device=device)
    return 2 * 4 * elements / _seconds(lambda: target.copy_(source), device, seconds)


def _exp2(device: str, seconds: float) -> float:
    if device == "cuda":
        from benchmarks.exp2_triton import CHAIN, exp2_call

        elements = 1 << 24
        return elements * CHAIN / _seconds(exp2_call(elements), device, seconds)
    x = torch.rand(1 << 16)  # stays in the cache
    out = torch.empty_like(x)
    return len(x) / _seconds(lambda: torch.exp2(x, out=out), device, seconds)


def _seconds(call, device: str, seconds: float) -> float:
    return interleave({"call": call}, device=device, rounds=10, sample=seconds / 12, budget=seconds)["call"].median


def floor_seconds(rates: dict[str, float], m: int, d: int, dtype: str, precision: str, backward: bool) -> float:
    """No version of NT-Xent that recomputes the matrix is faster: the slowest of products, exponentials and memory.

    By symmetry half of the ``M x M`` logits suffice, in each direction; backward needs one more full product for the
    gradients. With ``U = 2 M^2 D`` FLOP that is ``U / 2`` forward and ``U / 2 + U`` backward, and one exponential for
    each of the ``M^2 / 2`` pairs each time. The embeddings are read once a direction, gradients written once.
    """
    key = f"float32 {precision}" if dtype == "float32" else dtype
    size = getattr(torch, dtype).itemsize
    flops = 2 * m * m * d * (2.0 if backward else 0.5)
    exponentials = m * m / 2 * (2 if backward else 1)
    moved = m * d * size * (3 if backward else 1)
    return max(flops / rates[key], exponentials / rates["exp2"], moved / rates["copy"])
