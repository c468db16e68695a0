"""The CUDA C++ kernels of ``csrc/cuda``, for GPUs from sm_80 on; on the CPU only under their emulation, for tests."""

from __future__ import annotations

from ssl_kernels.backends.cuda.native import EMULATED, why_not

DEVICES = ("cuda", "cpu") if EMULATED else ("cuda",)

if why_not() is None:
    from ssl_kernels.backends.gpu.operations import operations

    globals().update(operations(__name__))
