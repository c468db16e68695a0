"""How fast do the average of a model and the queue of keys move, and how close is that to copying memory?"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import interleave, ratios
from ssl_kernels import MemoryQueue, backends, ema_update_
from ssl_kernels.testing import backends_for

TITLE = "Moving average and queue, milliseconds (times faster than the first rival; share of the triad's rate)"
COLUMNS = ("what", "size", "dtype")

MOMENTUM = 0.996
QUEUE, WIDTH = 65536, 128
BATCHES = (256, 1024, 4096)

Shapes = list[tuple[int, ...]]


def ask(losses: Collection[str] = (), quick: bool = False) -> Iterator[dict[str, Any]]:
    """Neither is a loss: whichever are asked for, these are the same."""
    if quick:
        yield from measure("cpu", {"small": [(64, 64), (64,)]}, batches=(16,), elements=1 << 20, rounds=3)
    else:
        yield from measure("cpu", MODELS)


def measure(
    device: str,
    models: Mapping[str, Shapes],
    batches: Collection[int] = BATCHES,
    elements: int = 1 << 26,
    rounds: int = 15,
    sample: float = 0.05,
) -> Iterator[dict[str, Any]]:
    rate = triad(device, elements)
    timed = partial(interleave, device=device, rounds=rounds, sample=sample)
    for name, shapes in models.items():
        for dtype in (torch.float32, torch.bfloat16):
            count = sum(map(math.prod, shapes))
            samples = timed(ema_calls(shapes, dtype, device))
            bound = count * (8 + dtype.itemsize) / rate
            yield from _rows("EMA", f"{name}, {len(shapes)} tensors", dtype, samples, "_foreach_lerp_", bound)
    for batch in batches:
        for dtype in (torch.float32, torch.bfloat16):
            samples = timed(enqueue_calls(batch, dtype, device))
            bound = batch * WIDTH * (4 + dtype.itemsize) / rate
            yield from _rows("enqueue", f"{batch} of {QUEUE} x {WIDTH}", dtype, samples, "normalise, write rows", bound)


def _rows(what: str, size: str, dtype: torch.dtype, samples, rival: str, bound: float) -> Iterator[dict[str, Any]]:
    for name, taken in samples.items():
        times = ratios(samples[rival], taken)
        yield (
            {"question": "state", "what": what, "size": size, "dtype": str(dtype)[6:], "provider": name}
            | {"rounds": len(taken.seconds)}
            | {f"{key}_ms": 1e3 * taken.percentile(q) for key, q in (("median", 50), ("p20", 20), ("p80", 80))}
            | {"times_faster": times.median, "share_of_triad": bound / taken.median}
        )


def triad(device: str, elements: int) -> float:
    """Bytes a second of ``a = b + 3 c`` on float32, two reads and a write: what moves an average, moves as much."""
    a, b, c = (torch.zeros(elements, device=device) for _ in range(3))
    call = {"triad": lambda: torch.add(b, c, alpha=3.0, out=a)}
    return 12 * elements / interleave(call, device=device, rounds=7)["triad"].median


# ------------------------------------------------------------------------------------------------------ moving averages
def ema_calls(shapes: Shapes, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    """The average in float32, the model that it follows in ``dtype``."""

    def lists() -> tuple[list[Tensor], list[Tensor]]:
        both = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(2)]
        return both[0], [t.to(dtype) for t in both[1]]

    def ours(name: str) -> Callable[[], None]:
        target, source = lists()
        return lambda: ema_update_(target, source, MOMENTUM, backend=name)

    def foreach() -> Callable[[], None]:
        target, source = lists()
        return lambda: torch._foreach_lerp_(target, _wide(source), 1 - MOMENTUM)

    def one_by_one() -> Callable[[], None]:
        target, source = lists()

        def call() -> None:
            for t, s in zip(target, source, strict=True):
                t.mul_(MOMENTUM).add_(s, alpha=1 - MOMENTUM)

        return call

    calls = {f"ssl_kernels {name}": ours(name) for name in _ours(device)}
    return calls | {"_foreach_lerp_": foreach(), "mul_, add_ one by one": one_by_one()}


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    return tensors if tensors[0].dtype == torch.float32 else [t.float() for t in tensors]


def resnet50() -> Shapes:
    """The parameters of a ResNet-50: 25.6 million in 161 tensors."""

    def convolution(into: int, of: int, side: int) -> Shapes:
        return [(into, of, side, side), (into,), (into,)]  # with its batch norm

    shapes, channels = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, channels, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def vit_b() -> Shapes:
    """The parameters of a ViT-B/16: 86.6 million in 152 tensors."""

    def linear(into: int, of: int) -> Shapes:
        return [(into, of), (into,)]

    norm: Shapes = [(768,), (768,)]
    layer = norm + linear(3 * 768, 768) + linear(768, 768) + norm + linear(4 * 768, 768) + linear(768, 4 * 768)
    stem: Shapes = [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,)]
    return stem + 12 * layer + norm + linear(1000, 768)


MODELS = {"ResNet-50": resnet50(), "ViT-B/16": vit_b()}


# ---------------------------------------------------------------------------------------------------------------- queue
def enqueue_calls(batch: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    """Keys in float32, the queue in ``dtype``, its pointer wherever its friends keep it."""
    keys = [torch.randn(batch, WIDTH, device=device) for _ in range(4)]

    def ours(name: str) -> Callable[[], None]:
        queue, turns = MemoryQueue(QUEUE, WIDTH, dtype, device=device, backend=name), cycle(keys)
        return lambda: queue.enqueue(next(turns))

    def rows() -> Callable[[], None]:
        return _ring(torch.zeros(QUEUE, WIDTH, dtype=dtype, device=device), cycle(keys), columns=False)

    def columns() -> Callable[[], None]:
        return _ring(torch.zeros(WIDTH, QUEUE, dtype=dtype, device=device), cycle(keys), columns=True)

    calls = {f"ssl_kernels {name}": ours(name) for name in _ours(device)}
    return calls | {"normalise, write rows": rows(), "normalise, write columns (MoCo)": columns()}


def _ring(queue: Tensor, turns: Iterator[Tensor], columns: bool) -> Callable[[], None]:
    pointer = torch.zeros(1, dtype=torch.int64, device=queue.device)

    def call() -> None:
        k = F.normalize(next(turns), dim=1)
        first = int(pointer)
        if columns:
            queue[:, first : first + len(k)] = k.T
        else:
            queue[first : first + len(k)] = k
        pointer[0] = (first + len(k)) % QUEUE

    return call


def _ours(device: str) -> list[str]:
    return [name for name in backends_for(device) if name != "reference" and backends.status()[name] is None]


def cell(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.3g} ({row['times_faster']:.1f}x; {100 * row['share_of_triad']:.0f} %)"
