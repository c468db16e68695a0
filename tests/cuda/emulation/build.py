"""Builds the CUDA module for the host: the sources of ``csrc/cuda`` as they are, against the emulation beside it.

python tests/cuda/emulation/build.py    prints where the module is
"""

from __future__ import annotations

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


@lru_cache(maxsize=None)
def build(csrc: Path = ROOT / "csrc", folder: Path = ROOT / "build" / "emulated") -> Path:
    """The module of the kernels in ``csrc``. What is up to date stays.

    Raises:
        RuntimeError: what the compiler said.
    """
    import ninja
    import pybind11

    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{csrc}", f"-I{HERE}"]
    for path in (pybind11.get_include(), sysconfig.get_path("include")):
        include += ["-isystem", path]
    command = " ".join(["g++", *FLAGS, *include])
    lines = [
        f"rule cxx\n  command = {command} -MMD -MF $out.d -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        "rule link\n  command = g++ -shared $in -o $out",
    ]
    objects = []
    for source in [*sorted(csrc.glob("cuda/*.cu")), csrc / "cuda" / "bind.cpp", HERE / "machine.cpp"]:
        objects.append(f"{source.stem}.o")
        lines.append(f"build {objects[-1]}: cxx {source}")
    lines.append(f"build {module.name}: link {' '.join(objects)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ran = subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{ran.stdout[-4000:]}")
    return module


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
