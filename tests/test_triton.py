"""The Triton backend: why it is not available, and its kernels in processes of their own.

The interpreter must be chosen before triton is imported, and compiling for a GPU that is not here replaces triton's
driver: neither can share a process with other tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_kernels.backends import triton as backend

HERE = Path(__file__).parent
KERNEL_TESTS = sorted(path.name for path in (HERE / "triton_kernels").glob("test_*.py"))
TABLE = HERE.parent / "docs" / "triton-aot.md"

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    path = os.pathsep.join(filter(None, [str(HERE.parent), clean.get("PYTHONPATH")]))
    clean |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], env=clean, cwd=HERE.parent, capture_output=True, text=True, check=False
    )


@needs_triton
@pytest.mark.parametrize("name", KERNEL_TESTS)
def test_kernels_in_the_interpreter(name):
    path = HERE / "triton_kernels" / name
    ran = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize(
    ("arch", "configurations"),
    [
        ("80", ["self-half-128", "pairs-split-128"]),
        ("90", ["self-half-128", "self-split-128", "cross-half-128", "attend-half-128"]),
        ("100", ["self-split-128", "cross-half-256"]),
        ("90", ["streams-half-256", "streams-split-256", "views-half-65536"]),
    ],
    ids=lambda p: f"sm_{p}" if isinstance(p, str) else "-".join(p),
)
def test_kernels_compile_as_the_table_says(arch, configurations):
    """No spills, shared memory within the chip, tensor cores used; under the table's triton also the same figures."""
    ran = _run(str(HERE / "triton_kernels" / "aot.py"), arch, *configurations)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    rows = [line for line in ran.stdout.splitlines() if line.startswith(f"| {arch} |")]
    assert len(rows) >= 7
    import triton

    table = TABLE.read_text()
    if f"with triton {triton.__version__};" in table:
        assert set(rows) <= set(table.splitlines()), "run `python tests/triton_kernels/aot.py` and commit the table"


@pytest.mark.parametrize(
    ("installed", "hip", "cuda", "capability", "reason"),
    [
        (False, None, True, (9, 0), "triton is not installed"),
        (True, "6.2", True, (9, 4), "ROCm"),
        (True, None, False, None, "no CUDA device"),
        (True, None, True, (7, 5), "sm_75"),
        (True, None, True, (8, 0), None),
    ],
    ids=["absent", "rocm", "cpu-only", "old", "served"],
)
def test_why_not(monkeypatch, installed, hip, cuda, capability, reason):
    monkeypatch.setattr(backend, "_INTERPRETED", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: capability)
    said = backend.why_not()
    assert (said is None) if reason is None else (reason in said)
