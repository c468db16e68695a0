"""Small calls of everything that the CUDA kernels do, for NVIDIA's compute-sanitizer to watch: ``make gpu`` runs this
file under each of its tools, where that program is installed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ssl_kernels import MemoryQueue, ema_update_
from ssl_kernels.losses import SPECS
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.testing import Case, temperatures

# memory out of bounds, races in shared memory, memory read before it was written, barriers misused
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAILED = 99  # exit status of a run in which a tool found something

# One width of every cut of the sweeps; neither count nor width fills a tile
WIDTHS = (50, 128, 200, 300)
ROWS = 70


def program() -> str | None:
    """compute-sanitizer, from the PATH or the CUDA toolkit."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(toolkit) if toolkit.exists() else None)


def command(tool: str) -> list[str]:
    """Watches our kernels only: they are all in one namespace."""
    found = program()
    assert found is not None
    watch = [found, "--tool", tool, "--kernel-name", "kernel_substring=ssl4cuda", "--error-exitcode", str(FAILED)]
    return [*watch, sys.executable, "-m", "benchmarks.sanitizer"]


def calls(device: str, backend: str) -> list[tuple[str, Callable[[], object]]]:
    found: list[tuple[str, Callable[[], object]]] = []
    for name, spec in SPECS.items():
        for width in WIDTHS:
            for dtype in (torch.bfloat16, torch.float32):
                case = Case(name, backend, device, dtype, ROWS, width, _temperature(spec))
                found.append((str(case), lambda case=case: case.evaluate(case.inputs())))  # type: ignore[misc]
    target, source = ([torch.randn(n, device=device) for n in (1, 1000, 4097)] for _ in range(2))
    found.append(("averages", lambda: ema_update_(target, source, 0.99, backend=backend)))
    queue = MemoryQueue(100, 50, backend=backend).to(device)
    found.append(("queue", lambda: queue.enqueue(torch.randn(ROWS, 50, device=device))))
    return found


def _temperature(spec: LossSpec) -> float:
    allowed = temperatures(spec)
    return 0.1 if 0.1 in allowed else allowed[0]


if __name__ == "__main__":
    for name, call in calls("cuda", "cuda"):
        print(name, flush=True)
        call()
    torch.cuda.synchronize()
