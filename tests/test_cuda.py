"""The CUDA kernels without a GPU: run on the host under their emulation, broken to see whether that is found, and
looked at as compiled for every GPU. With one, ``tests/test_gpu.py`` runs them too.

The emulated module takes the place of the compiled one, so what runs on it has a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path

import pytest
import torch

from ssl_kernels._native import build_info
from ssl_kernels.backends.cuda import native

HERE = Path(__file__).parent
ROOT = HERE.parent
EMULATION = HERE / "cuda" / "emulation"
X86 = platform.machine().lower() in ("x86_64", "amd64")
BUILT = next(ROOT.glob(f"build/ninja-cuda-*{sys.implementation.cache_tag}"), None)

sys.path.insert(0, str(EMULATION))
from build import build, mutant  # noqa: E402

emulates = pytest.mark.skipif(
    not X86 or shutil.which("g++") is None or not all(map(importlib.util.find_spec, ("ninja", "pybind11"))),
    reason="the emulation needs x86-64, g++, ninja and pybind11",
)


def run(module: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SSL_EMULATED": str(module)}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


# --------------------------------------------------------------------------------------------------------- emulated
@emulates
@pytest.mark.parametrize("name", ["values", "across", "pairs", "biased", "inputs", "points", "streams", "views"])
def test_kernels_on_the_host(name):
    """As Triton's kernels, by the same tests; of the sweeps those for a Hopper."""
    _passes_emulated(name)


@emulates
@pytest.mark.parametrize("name", ["values", "across", "pairs"])
def test_sweeps_of_other_gpus_on_the_host(name, monkeypatch):
    monkeypatch.setenv("SSL_ARCH", "80")
    _passes_emulated(name)


def _passes_emulated(name: str) -> None:
    path = HERE / "triton_kernels" / f"test_{name}.py"
    ran = run(build(), "-m", "pytest", "-q", "-p", "no:cacheprovider", path)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


# What a kernel loses, and what then goes wrong in ``cuda/check.py``: numbers, or the emulation's own complaint.
FAULTS = {
    "a row that is not written": (
        "rows.cu",
        "if (lane == 0) call.factors[row] = float(by);",
        "if (lane == 0 && row != 3) call.factors[row] = float(by);",
    ),
    "a barrier in a sum of blocks": (
        "warps.h",
        "  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;\n  __syncthreads();\n  x = int",
        "  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;\n  x = int",
    ),
    "a barrier that not all threads reach": (
        "finish.cu",
        "  __syncthreads();\n  if (threadIdx.x == 0) {\n    Real total",
        "  if (row < m.x.rows) __syncthreads();\n  if (threadIdx.x == 0) {\n    Real total",
    ),
    "the mask of the last rows": ("pairs.h", "return i < rows && j < columns;", "return true;"),
    "the mask of the last entries": ("elements.h", "k < count ? p[k] : narrowed<T>(0.0f)", "p[k]"),
    "the wait for a tile": ("weighing.h", "    copy_wait<STAGES - 2>();\n", ""),
    "the barrier behind that wait": (
        "weighing.h",
        "    copy_wait<STAGES - 2>();\n    __syncthreads();\n",
        "    copy_wait<STAGES - 2>();\n",
    ),
    "the mask of a diagonal": ("pairs.h", "return self ? (j - i) % step != 0 : j - i != step;", "return true;"),
}
# the one source whose kernels show it, so that the others need not be compiled again
SHOWN_BY = {"warps.h": "sums.cu", "elements.h": "rows.cu", "weighing.h": "backward.cu", "pairs.h": "attend.cu"}


@emulates
def test_the_check_that_faults_are_shown_by():
    ran = run(build(), HERE / "cuda" / "check.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@emulates
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    file, old, new = FAULTS[fault]
    module = mutant(tmp_path, file, old, new, SHOWN_BY.get(file, file))
    ran = run(module, HERE / "cuda" / "check.py")
    assert ran.returncode == 1, f"{fault}: nobody noticed\n{ran.stdout}{ran.stderr}"
    assert "wrong: " in ran.stdout, ran.stdout + ran.stderr


# ------------------------------------------------------------------------------------------------------ as compiled
def _tool(name: str) -> str | None:
    """From the toolkit, or of Triton's own."""
    if found := shutil.which(name):
        return found
    triton = importlib.util.find_spec("triton")
    inside = triton and triton.origin and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(inside) if inside and inside.exists() else None


SWEEPS = ("forward", "backward", "attend", "softplus")
# Sweeps in whose place Hopper has its own, by their mangled names: forward but for float64, and where rows stay whole.
REPLACED_ON_HOPPER = re.compile(r"forward_sweep.*(4Half|5Split)E|weighing_sweep.*3CutINS0_\w{5,6}E(Li\d+E){4}Lb1E")
compiled = pytest.mark.skipif(
    BUILT is None or not (BUILT / "forward.o").exists() or _tool("cuobjdump") is None,
    reason="the CUDA kernels were not built here, or there is no cuobjdump to look at them",
)


@compiled
@pytest.mark.parametrize("source", SWEEPS)
def test_sweeps_spill_nothing_and_fit(source):
    """Registers for as many threads as a block has, nothing put aside in memory; on every architecture built for."""
    usage = subprocess.run(
        [_tool("cuobjdump"), "-res-usage", BUILT / f"{source}.o"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+)", usage)
    assert len(found) >= 5
    # nvcc 12.4 puts one number aside, in SigLIP's sweep for Hopper, 256 wide
    aside = 8 if build_info()["cuda"]["compiler"].startswith("nvcc 12.") else 0
    for name, registers, stack in found:
        assert int(registers) <= 255
        assert int(stack) <= aside, f"{name} puts {stack} bytes aside"


@compiled
@pytest.mark.parametrize("source", SWEEPS)
def test_sweeps_use_tensor_cores(source):
    """HMMA and DMMA wherever they run, HGMMA in those for Hopper; nothing in what the other takes the place of."""
    sass = subprocess.run(
        [_tool("cuobjdump"), "-sass", BUILT / f"{source}.o"], capture_output=True, text=True, check=True
    ).stdout
    for arch, code in re.findall(r"arch = (sm_\w+)\n(.*?)(?=\narch = |\Z)", sass, re.S):
        for kernel, body in re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", code, re.S):
            if "opper" in kernel:
                assert ("HGMMA" in body) == (arch == "sm_90a"), f"{kernel} for {arch}"
            elif arch == "sm_90a" and REPLACED_ON_HOPPER.search(kernel):
                assert "MMA" not in body, f"{kernel} is never launched on {arch} and should be empty"
            else:
                assert re.search(r"\b[HD]MMA\b", body), f"{kernel} for {arch} multiplies without tensor cores"


def _tile_loops(body: str) -> list[str]:
    """The smallest loops of a kernel that have both products and exponentials in them: those over tiles."""
    code = [(int(at, 16), line) for at, line in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", body)]
    places, lines = zip(*code, strict=True)
    products, exponentials = ([at for at, line in code if name in line] for name in ("MMA.", "MUFU.EX2"))

    def within(sorted_places: list[int], first: int, last: int) -> bool:
        return bisect_left(sorted_places, first) < bisect_right(sorted_places, last)

    jumps = {(int(to[1], 16), at) for at, line in code if (to := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line))}
    loops = [jump for jump in jumps if within(products, *jump) and within(exponentials, *jump)]
    return [
        "\n".join(lines[bisect_left(places, first) : bisect_right(places, last)])
        for first, last in loops
        if not any((first, last) != (a, b) and first <= a and b <= last for a, b in loops)
    ]


# In a loop over tiles: waits, edges, the search for what is no negative. Of nvcc 13.0 at most 88; with a condition
# beside every entry they were 360 to 875.
MOST_BRANCHES = 120


@compiled
@pytest.mark.parametrize("source", SWEEPS)
def test_sweeps_neither_branch_at_every_entry_nor_wait_for_every_product(source):
    """What cannot be timed here can be counted: a choice left inside a loop becomes a branch at every entry, and
    products whose registers the assembler sees touched are waited for one by one."""
    sass = subprocess.run(
        [_tool("cuobjdump"), "-sass", BUILT / f"{source}.o"], capture_output=True, text=True, check=True
    ).stdout
    loops = 0
    for kernel, body in re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, re.S):
        for loop in _tile_loops(body):
            loops += 1
            branches = len(re.findall(r"\bBRA\b", loop))
            assert branches <= MOST_BRANCHES, f"{kernel} branches {branches} times for a tile"
        products, waits = (len(re.findall(rf"\b{name}\b", body)) for name in ("HGMMA", r"WARPGROUP\.DEPBAR"))
        assert 2 * waits <= products or not products, f"{kernel} waits {waits} times for {products} products"
    assert loops >= 10


@pytest.mark.skipif(importlib.util.find_spec("ssl_kernels._cuda") is None, reason="the CUDA kernels were not built")
def test_the_module_loads_without_a_driver():
    code = "from ssl_kernels import _cuda; print(_cuda.emulated, _cuda.driver_version(), _cuda.runtime_version() > 0)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"False \d+ True", ran.stdout.strip())


class Module:
    """What the extension says of the machine."""

    emulated = False

    def __init__(self, driver: int = 13000, complaint: str = "") -> None:
        self.driver_version = lambda: driver
        self.runtime_version = lambda: 13000
        self.complaint = lambda: complaint


@pytest.mark.parametrize(
    ("module", "hip", "cuda", "capability", "reason"),
    [
        (None, None, True, (9, 0), "the CUDA kernels were not built"),
        (Module(), "6.2", True, (9, 4), "ROCm"),
        (Module(), None, False, None, "no CUDA device"),
        (Module(), None, True, (7, 5), "sm_75"),
        (Module(driver=12080), None, True, (9, 0), "the driver serves CUDA 12.8, the kernels need 13.0 or newer"),
        (Module(complaint="no kernel image"), None, True, (12, 0), "do not run on this GPU, sm_120: no kernel image"),
        (Module(), None, True, (8, 0), None),
    ],
    ids=["absent", "rocm", "cpu-only", "old", "driver", "image", "served"],
)
def test_why_not(monkeypatch, module, hip, cuda, capability, reason):
    monkeypatch.setattr(native, "C", module)
    monkeypatch.setattr(native, "EMULATED", False)
    monkeypatch.setattr(native, "_reason", None if module else "the CUDA kernels were not built: no nvcc found")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: capability)
    said = native.why_not.__wrapped__()
    assert (said is None) if reason is None else (reason in said)
