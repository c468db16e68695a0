"""How much memory does forward and backward take at its peak, beyond inputs? Each answer from a fresh process."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from benchmarks.harness import in_fresh_process
from benchmarks.problems import PROBLEMS, providers
from benchmarks.questions.speed import Job, inputs, training_call
from ssl_kernels.testing import peak_extra_bytes

TITLE = "Peak memory of forward and backward beyond the inputs, MiB (gradients included)"
COLUMNS = ("loss", "n", "d", "dtype")

LARGEST_N = 65536
LARGEST_MATRIX = 4 << 30  # bytes of one float32 copy; where it is larger, only ours is asked: the others take minutes


def ask(losses: Collection[str] = PROBLEMS, quick: bool = False) -> Iterator[dict[str, Any]]:
    for loss in losses:
        problem = PROBLEMS[loss]
        large = [size for size in problem.sizes if size[0] >= 1024]
        sizes = problem.quick if quick else large + [(LARGEST_N, d) for _, d in large[-1:]] or problem.sizes
        for n, d in sizes:
            for dtype in (torch.float32, torch.bfloat16):
                for name in providers(loss, compiled=not quick and n <= 4096):
                    job = Job(loss, n, d, dtype)
                    if 4 * problem.entries(n) > LARGEST_MATRIX and not name.startswith("ssl_kernels"):
                        continue
                    peak = in_fresh_process(peak_of, name, job, torch.get_num_threads())
                    yield {
                        "question": "memory", "loss": loss, "n": n, "d": d, "dtype": str(dtype)[6:],
                        "provider": name, "peak_mib": peak / 2**20,
                    }  # fmt: skip


def peak_of(name: str, job: Job, threads: int) -> int:
    """Run in a fresh process."""
    torch.set_num_threads(threads)
    function = providers(job.loss, compiled=name.startswith("compile"))[name]
    # a compiled function must have been compiled for this very size; for the others a small call wakes all libraries,
    # which have code for matrices of few rows that no larger call would wake
    warm = job if name.startswith("compile") else Job(job.loss, min(64, job.n), job.d, job.dtype)
    training_call(function, [inputs(warm, 0)])()
    return peak_extra_bytes(training_call(function, [inputs(job, 1)]))


def cell(row: dict[str, Any]) -> str:
    return f"{row['peak_mib']:.0f}" if row["peak_mib"] >= 10 else f"{row['peak_mib']:.1f}"
