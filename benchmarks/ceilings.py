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


def floor_seconds(
    rates: dict[str, float], dtype: str, precision: str, flops: float, exponentials: float = 0, moved: float = 0
) -> float:
    """The slowest of products, exponentials and bytes moved: what is faster does not do all of the work."""
    key = f"float32 {precision}" if dtype == "float32" else dtype
    return max(flops / rates[key], exponentials / rates["exp2"], moved / rates["copy"])
