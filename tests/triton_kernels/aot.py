"""Compile every Triton kernel as it ships, for GPUs that are not here, and report what the assembler made of it.

    python tests/triton_kernels/aot.py                     all configurations; writes docs/triton-aot.md
    python tests/triton_kernels/aot.py 90 self-half-128    these only (architecture, then operation-operands-width)

The launch functions themselves run, on CPU tensors, with a driver that only compiles: what is reported is what would be
launched. A fault (a spill, too much shared memory, no tensor-core instruction, scratch in global memory, an offset
multiplied in 32 bits) ends the run with status 1. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from ssl_kernels.backends.gpu import across, launch, pairwise, within
from ssl_kernels.backends.gpu import distances as points
from ssl_kernels.backends.gpu import views as of_views
from ssl_kernels.backends.triton_kernels import (
    aligned,
    averaging,
    biased,
    distances,
    kernels,
    neighbours,
    ring,
    tiles,
    views,
)

TABLE = Path(__file__).parents[2] / "docs" / "triton-aot.md"
ARCHITECTURES = (80, 90, 100)
DTYPES = {tiles.HALF: torch.bfloat16, tiles.SPLIT: torch.float32, tiles.DOUBLE: torch.float64}
# one width of every class of tile, the narrowest, and 320, which is no multiple of the backward's BLOCK_D; raw: rows
# that are not normalised, as those of a sum over pairs never are
WIDTHS = ("half-128", "half-256", "half-320", "split-128", "split-320", "double-128")
CONFIGURATIONS = (
    *(f"self-{name}" for name in ("half-16", *WIDTHS, "half-128-raw", "split-128-raw")),
    *(f"cross-{name}" for name in ("half-512", *WIDTHS, "half-128-raw", "split-128-raw")),
    *(f"attend-{name}" for name in (*WIDTHS, "half-128-raw")),
    *(f"pairs-{name}" for name in WIDTHS),
    *(f"streams-{name}" for name in ("half-256", "split-256", "double-256")),
    *(f"views-{name}" for name in ("half-65536", "split-65536", "double-65536")),
    *(f"points-{name}" for name in ("half-128", "split-2", "split-128", "double-2")),
)
# What one block may take on the smallest chip of each generation: sm_86, sm_90, sm_100.
SHARED_LIMIT = {80: 101_376, 90: 232_448, 100: 232_448}
SHARED_PER_SM = {80: 167_936, 90: 233_472, 100: 233_472}
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|DMMA|UTC\w*MMA)\b")


class Report(NamedTuple):
    arch: int
    configuration: str
    kernel: str
    tile: str
    registers: int
    stack: int
    shared: int
    programs: int  # that fit on a multiprocessor
    instructions: str
    faults: str


class CompileOnly(DriverBase):
    """A driver that knows an architecture and has no device."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.get_device_capability = lambda device=0: (arch // 10, arch % 10)
        self.get_current_stream = lambda device=0: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None

    @staticmethod
    def is_active() -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self):
        raise NotImplementedError


def compile_all(arch: int, configurations: tuple[str, ...] | list[str]) -> list[Report]:
    triton.runtime.driver.set_active(CompileOnly(arch))
    launch.architecture = lambda device: arch
    reports: list[Report] = []
    seen: set[tuple[str, str]] = set()
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if (name, kernel.hash) not in seen:  # forward and backward both prepare the rows
            seen.add((name, kernel.hash))
            reports.append(_report(kernel, arch, name, self.fn, kwargs))
        return kernel

    JITFunction.run = compile_only
    try:
        for name in configurations:
            operation, operands, width, *raw = name.split("-")
            _launch(operation, DTYPES[operands], int(width), normalize=not raw)
    finally:
        JITFunction.run = run
    return reports


def _launch(operation: str, dtype: torch.dtype, width: int, *, normalize: bool) -> None:
    if operation == "views":
        return _launch_views(dtype, width)
    x, y = torch.zeros(8192, width, dtype=dtype), torch.zeros(16384, width, dtype=dtype)
    scale = torch.tensor(10.0, dtype=dtype)
    if operation == "self":
        args = [x, x], scale, 1.0, 8192, normalize
        neg, pos, top = within.self_lse(kernels, *args)
        within.self_lse_backward(kernels, neg, pos, *args, neg, top)
    elif operation == "cross":
        args = x, [y], scale, 1.0, 0, normalize
        neg, pos, top, neg_y, pos_y, top_y = across.cross_lse(kernels, *args, True)
        across.cross_lse_backward(kernels, neg, pos, neg_y, pos_y, *args, neg, top, neg_y, top_y, True, True)
    elif operation == "attend":
        across.attend_lse(kernels, x[:256], [y], scale, 1.0, 0, normalize)
    elif operation == "pairs":
        pairwise.pair_softplus(kernels, x, y, scale, scale, 1.0, 0, True)
    elif operation == "points":
        neighbours.nearest(x, y, 0, normalize)
        for dof in (1.0, 3.0, math.inf):
            args = [x, x], scale, 0.5, dof, 8192
            neg, low = points.student_lse(distances, *args)
            points.student_lse_backward(distances, neg, *args, neg, low)
    else:
        kept = aligned.cosine(x, x, 1e-8)
        aligned.cosine_backward(kept[0], x, x, *kept, 1e-8, True, True)
        ring.enqueue_(y, torch.tensor(0), x, True, True)
        # an average of 16 bits is rounded at random; beside it a tensor of integers
        wide, rounding = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 0]) if dtype == torch.bfloat16 else None
        averaging.average_([x, wide], [x, wide], torch.tensor(0.9), 0.0, 1, rounding)


def _launch_views(dtype: torch.dtype, width: int) -> None:
    """Ten views of eight images, two of them the teacher's; probabilities; Sinkhorn's steps."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    student, teacher, center = torch.zeros(80, width, dtype=dtype), torch.zeros(16, width, dtype=dtype), None
    for temp in (0.04, None):
        center = torch.zeros(1, width, dtype=wide) if temp else None
        args = [student], [teacher], center, 8, 0.1, temp, False
        value, kept = of_views.view_cross_entropy(views, *args)
        of_views.view_cross_entropy_backward(views, value, *args, kept, True, temp is None)
    biased.biased_lse(student, center, 20.0, 0)
    biased.biased_lse(student, torch.zeros(width, dtype=wide), 20.0, 1)


def _report(kernel, arch: int, name: str, function, kwargs: dict) -> Report:
    is_sweep = function.__name__ == "sweep"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "k.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = _tool("nvdisasm", "-c", cubin) if is_sweep or function.__name__ == "average" else ""
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    products = TENSOR_CORE.findall(sass)
    kind = function.__module__.rpartition(".")[2]

    faults = []
    # a kernel that goes over its rows once may put a value aside to fit one program more, a sweep has its loop
    if stack > (0 if is_sweep else 16):
        faults.append(f"spills {stack} bytes")
    if shared > SHARED_LIMIT[arch]:
        faults.append("too much shared memory")
    if kernel.metadata.global_scratch_size:
        faults.append("scratch in global memory")
    wanted = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[arch]
    if tiles.DOUBLE in name:
        wanted = "DMMA" if arch < 100 else ""  # triton has no float64 product for Blackwell's tensor cores
    if is_sweep and wanted and wanted not in products:
        faults.append(f"no {wanted}")
    if function.__name__ == "average":
        if not re.search(r"LDG\.E\S*\.128", sass):
            faults.append("loads no vectors")
    elif re.search(r"arith\.muli .* : tensor<\S*xi32>", kernel.asm["ttir"]):  # which random bits may be
        faults.append("offsets are multiplied in 32 bits")
    blocks = [str(kwargs[k]) for k in ("ROWS", "BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_D", "BLOCK") if k in kwargs]
    return Report(
        arch, name, f"{kind}.{function.__name__}", f"{'x'.join(blocks)} w{warps} s{kernel.metadata.num_stages}",
        registers, stack, shared, min(by_registers, SHARED_PER_SM[arch] // (shared + 1024), 64 // warps),
        ", ".join(f"{products.count(p)} {p}" for p in sorted(set(products))), "; ".join(faults),
    )  # fmt: skip


def _tool(name: str, *args) -> str:
    path = Path(nvidia.__file__).parent / "bin" / name
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout


def table(rows: list[str]) -> str:
    lines = [
        "# The Triton kernels, as compiled",
        "",
        f"Written by `python tests/triton_kernels/aot.py` with triton {triton.__version__};",
        "a test compiles a part of it again. Nothing here ran: these are the assembler's figures. `raw` is",
        "`normalize=False`; a tile reads BLOCK_M x BLOCK_N x BLOCK_K (x BLOCK_D) or ROWS x BLOCK_D, warps, stages;",
        "*programs* is how many fit on a multiprocessor.",
        "",
        "| sm | operands | kernel | tile | registers | stack | shared | programs | tensor cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def main(arguments: list[str]) -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("compile without TRITON_INTERPRET")
    if not arguments:
        # a process for each: triton remembers kernels by device, and there is only one
        command = [sys.executable, __file__]
        parts = [
            subprocess.Popen([*command, str(arch), *CONFIGURATIONS], stdout=subprocess.PIPE, text=True)
            for arch in ARCHITECTURES
        ]
        rows = [line for part in parts for line in part.communicate()[0].splitlines() if line[2:3].isdigit()]
        TABLE.write_text(table(rows))
        return max(part.returncode for part in parts)
    reports = compile_all(int(arguments[0]), arguments[1:])
    print(table(["| " + " | ".join(map(str, r[:-1])) + " |" for r in reports]))
    faulty = [r for r in reports if r.faults]
    for r in faulty:
        print(f"sm_{r.arch} {r.configuration} {r.kernel}: {r.faults}", file=sys.stderr)
    return 1 if faulty else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
