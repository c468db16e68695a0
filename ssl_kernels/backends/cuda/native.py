"""The compiled module, and tensors as it takes them: addresses, codes of dtypes, the stream."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ssl_kernels._native import load

C: Any
C, _reason = load("_cuda")
EMULATED: bool = C is not None and C.emulated
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NOTHING = 0

# A launch may take 32 KiB of parameters from this driver on: the addresses of an average's tensors.
LEAST_DRIVER = 12010


@lru_cache(maxsize=None)
def why_not() -> str | None:
    if C is None or EMULATED:
        return _reason
    if torch.version.hip is not None:
        return "this torch is built for ROCm, the kernels are for CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU is sm_{major}{minor}, the kernels need sm_80 or newer"
    driver, least = C.driver_version(), max(LEAST_DRIVER, C.runtime_version() // 1000 * 1000)
    if driver < least:
        return f"the driver serves CUDA {_version(driver)}, the kernels need {_version(least)} or newer"
    if complaint := C.complaint():
        return f"the kernels do not run on this GPU, sm_{major}{minor}: {complaint}"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def generation(arch: int) -> int:
    """Whose kernels serve: Hopper's own only where code for it was built, they are empty elsewhere."""
    return arch if arch != 90 or C.hopper else 80


def address(t: Tensor | None) -> int:
    return NOTHING if t is None else t.data_ptr()


def number(t: Tensor | None) -> tuple[int, int]:
    """A number on the device, or none."""
    return (NOTHING, 0) if t is None else (t.data_ptr(), DTYPES[t.dtype])


def stream(device: torch.device) -> int:
    """torch's current one."""
    return NOTHING if device.type != "cuda" else torch.cuda.current_stream(device).cuda_stream
