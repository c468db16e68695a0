"""Time, memory and surroundings of a call, on machines that others use at the same time.

Absolute times on a shared machine say little; ratios within one run say much. So candidates are interleaved (A B C,
A B C, ...) and a ratio is taken within each round, between samples that lie side by side; what is reported is the
median over the rounds, with the 20th and 80th percentile.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import ssl_kernels
from ssl_kernels import backends

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

# Freed memory stays with the process, so that big temporaries are not mapped and zeroed anew on every call. It helps
# whoever makes big temporaries, eager most of all: ratios are given with and without it.
RETAINED_HEAP = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        return percentile(self.seconds, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of ``values``."""
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (position - low)


def ratios(slow: Samples, fast: Samples) -> Samples:
    """How many times longer ``slow`` took than ``fast``, round by round."""
    return Samples(tuple(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)))


# ----------------------------------------------------------------------------------------------------------------- time
def timer(device: str) -> Callable[[Call, int], float]:
    """``timer(device)(call, n)`` is the time of ``n`` calls in a row, in seconds, finished work only."""
    return _cuda_seconds if device == "cuda" else _wall_seconds


def _wall_seconds(call: Call, n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call, n: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(n):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleave(
    calls: Mapping[str, Call], *, device: str = "cpu", rounds: int = 15, sample: float = 0.05, budget: float = 60.0
) -> dict[str, Samples]:
    """Times ``calls`` in turns.

    Args:
        rounds: how many samples of each.
        sample: each lasts at least about this many seconds, or one call.
        budget: no further round is begun after so many seconds (three are made at least, or one where a round alone
            takes longer than the budget).
    """
    seconds = timer(device)
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, allocates, reads the code
        repeats[name] = max(1, round(sample / max(seconds(call, 1), 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(rounds):
        passed = time.perf_counter() - start
        if passed > budget and (done >= 3 or passed / max(done, 1) > budget):
            break
        for name, call in calls.items():
            taken[name].append(seconds(call, repeats[name]) / repeats[name])
    return {name: Samples(tuple(values)) for name, values in taken.items()}


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision``, undone at the end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# --------------------------------------------------------------------------------------------------------------- memory
def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``function`` (of a module, not a lambda) in a process where nothing ran before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --------------------------------------------------------------------------------------------------------- surroundings
def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number means nothing without: goes into every row."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": processor(device),
        "features": " ".join(features()),
        "kernels": _kernels(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "heap": "retained" if heap_is_retained() else "default",
        "omp": " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "GOMP_", "KMP_"))),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "ssl_kernels": ssl_kernels.__version__,
    }


def commit() -> str:
    """The commit measured, with a plus if files differ from it; ``unknown`` outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # results written by an earlier run do not change what is measured
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "ssl_kernels", "csrc", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} CPUs"


def features() -> list[str]:
    """The vector and matrix extensions of the CPU that some kernel here, or in torch, makes use of."""
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
    return [name for name in interesting if name in _cpuinfo("flags").split()]


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _kernels() -> str:
    return " ".join(name for name, reason in backends.status().items() if reason is None)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def heap_is_retained() -> bool:
    return "trim_threshold" in os.environ.get("GLIBC_TUNABLES", "")


def retain_heap() -> None:
    """Starts this very command again under :data:`RETAINED_HEAP`, which glibc reads only when a program begins."""
    if not heap_is_retained():
        arguments = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | {"GLIBC_TUNABLES": RETAINED_HEAP})


def results_folder(device: str = "cpu") -> Path:
    """``results/<machine>-<date>``."""
    name = re.sub(r"\(r\)|\(tm\)|nvidia|processor|@.*?(?=,)", "", processor(device).lower())
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{date.today().isoformat()}"
