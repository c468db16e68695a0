"""These tests need a process of their own, which ``tests/test_triton.py`` and ``tests/test_cuda.py`` start: with
TRITON_INTERPRET=1, or with the path of the emulated CUDA module in SSL_EMULATED."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# Numbers before a buffer and after it, and which they are.
AROUND, UNTOUCHED = 1024, 7

# What only Triton's interpreter can say, or only Triton's kernels do.
OF_TRITON = ["test_interpreter.py", "test_size.py"]

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()
elif path := os.environ.get("SSL_EMULATED"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "cuda" / "emulation"))
    from load import Emulated

    emulated = Emulated(Path(path))
    collect_ignore = OF_TRITON
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Buffers start as NaN: an entry that no kernel writes, or that one reads too early, does not stay hidden. And
    before and after those of the CUDA kernels lie numbers that nobody may write, as Triton's interpreter checks itself.
    """
    from serving import NAME, draw

    from ssl_kernels.backends.gpu import launch

    if arch := os.environ.get("SSL_ARCH"):  # whose kernels run; those of a Hopper otherwise
        monkeypatch.setattr(launch, "architecture", lambda device: int(arch))
    torch.manual_seed(0)
    draw(0)
    rooms: list[tuple[torch.Tensor, int]] = []

    def fill(make):
        def filled(*args, **kwargs):
            t = make(*args, **kwargs)
            if NAME == "cuda":
                room = t.new_full((t.numel() + 2 * AROUND,), UNTOUCHED)
                rooms.append((room, t.numel()))
                t = room[AROUND : AROUND + t.numel()].view(t.shape)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, fill(getattr(torch, name)))
    yield
    monkeypatch.undo()  # a test may have forbidden to read tensors
    for room, size in rooms:
        assert (room[:AROUND] == UNTOUCHED).all(), f"something was written before a buffer of {size} numbers"
        assert (room[AROUND + size :] == UNTOUCHED).all(), f"something was written past a buffer of {size} numbers"
