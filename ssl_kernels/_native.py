"""The compiled modules, or the reasons why there are none."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any


@lru_cache(maxsize=None)
def load(name: str = "_C") -> tuple[ModuleType | None, str | None]:
    """``(module, None)``, or ``(None, why)`` where it was not built or does not load: ``_C`` or ``_cuda``."""
    module = f"ssl_kernels.{name}"
    what, record = ("C++", build_info()) if name == "_C" else ("CUDA", build_info().get("cuda", {}))
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        return None, f"the {what} kernels were not built: {record.get('reason') or _remedy()}"
    try:
        return importlib.import_module(module), None
    except ImportError as error:
        return None, f"the {what} kernels do not load: {error}"


def _remedy() -> str:
    """Where nothing is recorded: most often Python was started in a clone, which hides what was installed from it."""
    root = Path(__file__).parent.parent
    if (root / "csrc").is_dir():
        return f"{root} is a source tree; run pip install -e . there, or start Python elsewhere to use an installed one"
    return "run pip install . again"


def build_info() -> dict[str, Any]:
    """What the build recorded (``_build.json``): extension, reason, isas, openmp, compiler, cuda; or nothing."""
    try:
        return json.loads(Path(__file__).with_name("_build.json").read_text())
    except (OSError, ValueError):
        return {}
