"""Triton kernels for NVIDIA GPUs from sm_80 on; on the CPU only under Triton's interpreter, for tests."""

from __future__ import annotations

import importlib.util
import os

import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = ("cuda", "cpu") if _INTERPRETED else ("cuda",)


def why_not() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _INTERPRETED:
        return None
    if torch.version.hip is not None:
        return "this torch is built for ROCm, the kernels are for CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU is sm_{major}{minor}, the kernels need sm_80 or newer"
    return None


if why_not() is None:
    from ssl_kernels.backends.gpu.operations import operations

    globals().update(operations("ssl_kernels.backends.triton_kernels"))
