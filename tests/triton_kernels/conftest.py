"""These tests need a process of their own, with TRITON_INTERPRET=1 (``tests/test_triton.py`` starts it)."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Buffers start as NaN: an entry that no kernel writes, or that one reads too early, does not stay hidden."""
    torch.manual_seed(0)

    def fill(make):
        def filled(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, fill(getattr(torch, name)))
