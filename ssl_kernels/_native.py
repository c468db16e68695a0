"""The compiled module, or the reason why there is none."""

from __future__ import annotations

import importlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any


@lru_cache(maxsize=None)
def load() -> tuple[ModuleType | None, str | None]:
    """``(module, None)``, or ``(None, why)`` where it was not built or does not load."""
    if importlib.util.find_spec("ssl_kernels._C") is None:
        return None, f"the C++ kernels were not built: {build_info().get('reason') or 'run pip install . again'}"
    try:
        return importlib.import_module("ssl_kernels._C"), None
    except ImportError as error:
        return None, f"the C++ kernels do not load: {error}"


def build_info() -> dict[str, Any]:
    """What the build recorded (``_build.json``): extension, reason, isas, openmp, compiler; empty if there is none."""
    try:
        return json.loads(Path(__file__).with_name("_build.json").read_text())
    except (OSError, ValueError):
        return {}
