"""Puts the emulated kernels in the place of the compiled ones; before ``ssl_kernels.backends`` is asked for them."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


class Emulated:
    """The module of one build, in use as ``ssl_kernels._cuda``."""

    def __init__(self, path: Path) -> None:
        spec = importlib.util.spec_from_file_location("ssl_kernels._cuda", path)
        assert spec is not None and spec.loader is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        sys.modules["ssl_kernels._cuda"] = self.module
        self.library = ctypes.CDLL(str(path))

    def seed(self, seed: int) -> None:
        """Draws anew what a GPU leaves open: the order of blocks, warps and lanes, and when copies arrive."""
        self.library.ssl_emulated_seed(seed)
