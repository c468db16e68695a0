"""Builds the CUDA module for the host: the sources of ``csrc/cuda`` as they are, against the emulation beside it.

python tests/cuda/emulation/build.py    prints where the module is
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FLAGS = (
    "-std=c++20 -O2 -march=native -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -DSSL_EMULATED".split()
)


FOLDER = ROOT / "build" / "emulated"
MODULE = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


def compiler(csrc: Path) -> list[str]:
    import pybind11

    include = [f"-I{csrc}", f"-I{HERE}"]
    for path in (pybind11.get_include(), sysconfig.get_path("include")):
        include += ["-isystem", path]
    return ["g++", *FLAGS, *include, "-x", "c++", "-c"]


def sources() -> list[Path]:
    cuda = ROOT / "csrc" / "cuda"
    return [*sorted(cuda.glob("*.cu")), cuda / "bind.cpp", *sorted(HERE.glob("*.cpp"))]


@lru_cache(maxsize=None)
def build() -> Path:
    """The module. What is up to date stays.

    Raises:
        RuntimeError: what the compiler said.
    """
    import ninja

    command = " ".join(compiler(ROOT / "csrc"))
    lines = [
        f"rule cxx\n  command = {command} $in -o $out -MMD -MF $out.d\n  depfile = $out.d\n  deps = gcc",
        "rule link\n  command = g++ -shared $in -o $out",
    ]
    lines += [f"build {source.stem}.o: cxx {source}" for source in sources()]
    lines.append(f"build {MODULE}: link {' '.join(f'{source.stem}.o' for source in sources())}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:  # several processes run the tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        (FOLDER / "build.ninja").write_text("\n".join(lines) + "\n")
        ran = subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", FOLDER], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{ran.stdout[-4000:]}")
    return FOLDER / MODULE


def mutant(folder: Path, file: str, old: str, new: str, source: str) -> Path:
    """The module with ``old`` in ``file`` become ``new``, of which only ``source`` knows."""
    build()
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("cpu"))
    text = (csrc / "cuda" / file).read_text()
    if old not in text:
        raise ValueError(f"{file} has no {old!r}")
    (csrc / "cuda" / file).write_text(text.replace(old, new, 1))
    changed = folder / "changed.o"
    subprocess.run([*compiler(csrc), "-O1", "-w", csrc / "cuda" / source, "-o", changed], check=True)
    others = [FOLDER / f"{path.stem}.o" for path in sources() if path.name != source]
    subprocess.run(["g++", "-shared", changed, *others, "-o", folder / MODULE], check=True)
    return folder / MODULE


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
