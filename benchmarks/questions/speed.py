"""How long does forward and backward take, from small batches to large ones, at every precision?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from benchmarks.harness import interleave, matmul_precision, ratios
from benchmarks.problems import EAGER, PROBLEMS, Loss, providers

TITLE = "Forward and backward, milliseconds (times faster than eager in the same run)"
COLUMNS = ("loss", "n", "d", "dtype", "precision")


@dataclass(frozen=True)
class Job:
    """One line of the table: a problem (its name is in ``PROBLEMS``) at one size, which all providers solve."""

    loss: str
    n: int
    d: int
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # torch.set_float32_matmul_precision; means nothing to the other dtypes


PRECISIONS = ((torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest"))


def jobs(losses: Collection[str], quick: bool) -> list[Job]:
    return [
        Job(loss, n, d, *precision)
        for loss in losses
        for precision in PRECISIONS
        for n, d in (PROBLEMS[loss].quick if quick else PROBLEMS[loss].sizes)
    ]


def ask(losses: Collection[str] = PROBLEMS, quick: bool = False) -> Iterator[dict[str, Any]]:
    for job in jobs(losses, quick):
        compiled = not quick and job.n in PROBLEMS[job.loss].compiled_at
        yield from measure(job, providers(job.loss, compiled=compiled), rounds=3 if quick else 15)


def measure(job: Job, candidates: dict[str, Loss], rounds: int, budget: float = 60.0) -> list[dict[str, Any]]:
    """A row for every provider, in one interleaved run."""
    draws = [inputs(job, seed) for seed in range(3)]
    calls = {name: training_call(function, draws) for name, function in candidates.items()}
    with matmul_precision(job.precision):
        samples = interleave(calls, rounds=rounds, budget=budget)
    rows = []
    for name, taken in samples.items():
        times = ratios(samples[EAGER], taken)
        rows.append(
            {"question": "speed", "loss": job.loss, "n": job.n, "d": job.d, "dtype": str(job.dtype)[6:]}
            | {"precision": job.precision, "provider": name, "rounds": len(taken.seconds)}
            | {f"{key}_ms": 1e3 * taken.percentile(q) for key, q in (("median", 50), ("p20", 20), ("p80", 80))}
            | {f"{key}_times_faster": times.percentile(q) for key, q in (("median", 50), ("p20", 20), ("p80", 80))}
        )
    return rows


def inputs(job: Job, seed: int, device: str = "cpu") -> dict[str, Any]:
    return PROBLEMS[job.loss].draw(job.n, job.d, job.dtype, seed, device)


def training_call(function: Loss, draws: list[dict[str, Any]]) -> Callable[[], None]:
    """Forward and backward on each of ``draws`` in turn, so that no call finds its own inputs in the cache."""
    turns = cycle(draws)

    def call() -> None:
        leaves = next(turns)
        for value in leaves.values():
            if isinstance(value, torch.Tensor):
                value.grad = None
        function(**leaves).backward()

    return call


def cell(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.3g} ({row['median_times_faster']:.1f}x)"
