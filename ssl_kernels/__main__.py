"""``python -m ssl_kernels``: which backends are here, why the others are not, and on what they run."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import torch

import ssl_kernels
from ssl_kernels import _native, backends

Rows = Iterator[tuple[str, str]]

# of the processor's, those that some kernel asks for
FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    *("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
)


def report() -> str:
    sections = {
        f"ssl_kernels {ssl_kernels.__version__}": _versions(),
        "backends": _backends(),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "build": _build(),
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<10} {what}" for name, what in rows), ""]
    return "\n".join(lines[:-1])


def _versions() -> Rows:
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", torch.__version__
    for package in ("triton", "numpy"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _backends() -> Rows:
    try:
        for name, reason in backends.status().items():
            yield name, f"not here: {reason}" if reason else "here"
    except Exception as error:  # a report of what is broken must outlive what is broken
        yield "broken", f"{type(error).__name__}: {error}"


def _cpu() -> Rows:
    known = _cpuinfo()
    yield "processor", known.get("model name", platform.processor() or platform.machine())
    if flags := known.get("flags", "").split():
        yield "features", " ".join(name for name in FEATURES if name in flags) or "none of " + " ".join(FEATURES)
    module, reason = _native.load()
    if module is None:
        yield "kernels", reason or ""
    else:
        yield "kernels", f"{module.isa()} (this machine runs {', '.join(module.isas())})"
    yield "threads", str(torch.get_num_threads())


def _cpuinfo() -> dict[str, str]:
    """The first processor of ``/proc/cpuinfo``; empty where there is no such thing."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _cuda() -> Rows:
    yield "torch", f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        yield f"device {index}", f"{device.name}, sm_{device.major}{device.minor}, {memory}"
    if not torch.cuda.device_count():
        yield "devices", "none"


def _build() -> Rows:
    info = _native.build_info()
    if info.get("extension"):
        yield "extension", f"built for {', '.join(info['isas'])}"
    else:
        yield "extension", f"not built: {info.get('reason', 'there is no record of a build')}"
    if info.get("compiler"):
        yield "compiler", info["compiler"]
        yield "openmp", "yes" if info.get("openmp") else "no"
    for what, why in info.get("skipped", {}).items():
        yield f"no {what}", why
    cuda = info.get("cuda", {})
    if cuda.get("extension"):
        yield "cuda", f"built by {cuda['compiler']} for {', '.join(cuda['targets'])}"
    else:
        yield "cuda", f"not built: {cuda.get('reason', 'there is no record of a build')}"


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
