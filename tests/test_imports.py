"""The arrows of the house: methods -> losses -> ops -> backends. Read from the sources, so that no import escapes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each part may import itself and what stands above it here; the longest prefix names the part of a module.
RANKS = {
    "ssl_kernels._native": 0,
    "ssl_kernels.backends": 1,
    "ssl_kernels.ops": 2,
    "ssl_kernels.losses": 3,
    "ssl_kernels.ema": 3,
    "ssl_kernels.memory_queue": 3,
    "ssl_kernels": 4,
    "ssl_kernels.__main__": 5,
    "ssl_kernels.compat": 5,
    "ssl_kernels.testing": 5,
    "methods": 6,
    "benchmarks": 7,
    "tests": 8,
}
# No arrow skips the waist, and testing is for tests and benchmarks.
STRANGERS = {
    ("ssl_kernels.losses", "ssl_kernels.backends"),
    ("ssl_kernels.ema", "ssl_kernels.backends"),
    ("ssl_kernels.memory_queue", "ssl_kernels.backends"),
    ("methods", "ssl_kernels.backends"),
    ("methods", "ssl_kernels.ops"),
    ("methods", "ssl_kernels.testing"),
}

# What the package may ask of others; everything else it leaves to methods and benchmarks.
THIRD_PARTY = {"torch", "numpy"}
TRITON = "ssl_kernels.backends.triton"


def part_of(module: str) -> str:
    names = module.split(".")
    prefixes = (".".join(names[:k]) for k in range(len(names), 0, -1))
    return next((prefix for prefix in prefixes if prefix in RANKS), names[0])


def imports(module: str, source: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and module of every import, in functions too; ``from a import b`` counts as ``a.b``."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    found = []
    mine = part_of(module)
    allowed = THIRD_PARTY | sys.stdlib_module_names | ({"triton"} if module.startswith(TRITON) else set())
    for line, target in imports(module, source, is_package):
        top, other = target.split(".")[0], part_of(target)
        if other in RANKS:
            if other != mine and (RANKS[other] >= RANKS[mine] or (mine, other) in STRANGERS):
                found.append(f"{module}:{line} imports {target}, against the arrow")
        elif module.startswith("ssl_kernels") and top not in allowed:
            found.append(f"{module}:{line} imports {top}, which the package does not require")
    return found


def files() -> list[Path]:
    return [
        path
        for top in ("ssl_kernels", "methods", "benchmarks", "tests")
        for path in sorted(ROOT.glob(f"{top}/**/*.py"))
    ]


def name_of(path: Path) -> tuple[str, bool]:
    names = path.relative_to(ROOT).with_suffix("").parts
    is_package = names[-1] == "__init__"
    return ".".join(names[:-1] if is_package else names), is_package


def test_no_import_against_the_arrows():
    sources = files()
    assert ROOT / "ssl_kernels/ops/within.py" in sources
    found = []
    for path in sources:
        module, is_package = name_of(path)
        found += faults(module, path.read_text(), is_package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ssl_kernels.backends.cpu", "from ssl_kernels import ops"),
        ("ssl_kernels.backends.cpu", "from .. import ops"),
        ("ssl_kernels.backends.cpu", "def f():\n    import ssl_kernels.losses.nt_xent"),
        ("ssl_kernels.ops", "from ssl_kernels.losses import SPECS"),
        ("ssl_kernels.losses.nt_xent", "import ssl_kernels"),
        ("ssl_kernels.losses.nt_xent", "from ssl_kernels.testing import cases"),
        ("ssl_kernels.compat", "from ssl_kernels import testing"),
        ("methods.simclr", "from ssl_kernels.testing import cases"),
        ("methods.simclr", "from benchmarks import harness"),
        ("methods.simclr", "from ssl_kernels.ops import self_lse"),
        ("ssl_kernels.testing", "from methods.simclr import SimCLR"),
        ("ssl_kernels.losses.nt_xent", "import torchvision"),
        ("ssl_kernels.ops", "import triton"),
        ("ssl_kernels.testing", "from kornia.augmentation import ColorJitter"),
    ],
)
def test_a_planted_fault_is_found(module, source):
    assert faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ssl_kernels.backends.triton_kernels.kernels", "import triton"),
        ("ssl_kernels.ops", "from ssl_kernels import backends"),
        ("ssl_kernels.losses.nt_xent", "from . import spec"),
        ("methods.simclr", "from ssl_kernels import NTXentLoss\nimport kornia"),
        ("benchmarks.harness", "from ssl_kernels.testing import cases"),
    ],
)
def test_what_the_arrows_allow(module, source):
    assert not faults(module, source)


def test_importing_the_package_brings_only_torch_along():
    """Fast to import, and harmless: no compiler stack, no backend, nothing that only training or plotting needs."""
    code = (
        "import sys, torch; before = set(sys.modules); import ssl_kernels;"
        "print(*{name for name in set(sys.modules) - before if not name.startswith('torch.')})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    new = {name for name in ran.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert {"ssl_kernels", "ssl_kernels.ops", "ssl_kernels.losses"} <= new
    assert all(name.startswith("ssl_kernels") for name in new), new
    backends = {name for name in new if name.startswith("ssl_kernels.backends.")} | new & {"ssl_kernels._C"}
    assert not backends, backends
