"""Whose kernels these tests run: Triton's in its interpreter, or CUDA's in their emulation."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    from ssl_kernels.backends import triton as kernels

    NAME = "triton"

    def draw(seed: int) -> None:
        """Another order of everything whose order a GPU leaves open."""
        interpreter.SETTINGS.seed = seed

    def reach(*tensors: torch.Tensor) -> None:
        """Tensors whose addresses lie in memory, not among a launch's arguments."""
        interpreter.SETTINGS.reachable = list(tensors)

    def idle(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        """Launches of these kernels do nothing, not even what the interpreter reads on the host to run them."""
        monkeypatch.setattr(interpreter.SETTINGS, "only", dict.fromkeys(names, ()))
else:
    from conftest import emulated

    from ssl_kernels.backends import cuda as kernels

    NAME = "cuda"
    draw = emulated.seed

    def reach(*tensors: torch.Tensor) -> None:
        """Nobody asks."""

    def idle(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        """Compiled kernels read nothing through torch: they may run."""


__all__ = ["NAME", "draw", "idle", "kernels", "reach"]
