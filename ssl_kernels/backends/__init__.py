"""Which implementation serves a call: by device, by what is really installed, or by name.

A backend is a module of this package with the waist's functions (``self_lse``, ``self_lse_backward``) and

* ``why_not() -> str | None``: why it cannot run on this machine at all, None where it can;
* ``DEVICES``: the device types it serves.

Modules are imported on first use, so that a missing compiler, driver or package costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

NAMES = ("cuda", "triton", "cpu", "reference")

# Fastest first. The reference is last everywhere: it is the definition, and it stores the whole matrix.
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_override = ""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside the ``with`` block by the backend ``name`` (a ``backend=`` argument still wins).

    Process-wide, not per thread, so that ``torch.compile`` can see and guard it.

    Raises:
        ValueError: unknown name. Whether it can serve a device is said by the call that asks it to.
    """
    global _override
    _known(name)
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def override() -> str:
    """The name set by :func:`use_backend`, or the empty string."""
    return _override


def status() -> dict[str, str | None]:
    """Every backend by name, with the reason why it is not available here, or None where it is."""
    return {name: _load(name)[1] for name in NAMES}


def resolve(name: str, device: torch.device, operation: str) -> ModuleType:
    """The module that serves ``operation`` on ``device``: the one called ``name``, or the fastest available if it is
    empty. What a backend does not have passes to the next.

    Raises:
        ValueError: unknown name, or the named backend cannot serve this; says why and what is available.
    """
    return _resolve(name, device.type, operation)


def operation(name: str, device: torch.device, operation: str) -> Callable[..., Any]:
    """The function itself of the backend that :func:`resolve` finds."""
    return getattr(resolve(name, device, operation), operation)


@lru_cache(maxsize=None)
def _resolve(name: str, device: str, operation: str) -> ModuleType:
    if name:
        _known(name)
        module, reason = _serving(name, device, operation)
        if module is None:
            here = [n for n in NAMES if _serving(n, device, operation)[0] is not None]
            raise ValueError(f"backend={name!r} cannot serve {device} tensors: {reason}; available: {', '.join(here)}")
        return module
    reasons: list[str] = []
    for candidate in ORDER.get(device, ("reference",)):
        module, reason = _serving(candidate, device, operation)
        if module is not None:
            if candidate == "reference" and reasons:
                warnings.warn(
                    f"ssl_kernels: {device} tensors are served by the slow reference backend, which stores the whole "
                    f"similarity matrix ({'; '.join(reasons)})",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return module
        reasons.append(f"{candidate}: {reason}")
    raise ValueError(f"no backend serves {device} tensors ({'; '.join(reasons)})")


def _serving(name: str, device: str, operation: str) -> tuple[ModuleType | None, str | None]:
    """The backend's module if it has the operation for the device, or the reason why it does not serve it."""
    module, reason = _load(name)
    if module is None:
        return None, reason
    if device not in module.DEVICES:
        return None, f"it serves {' and '.join(module.DEVICES)} tensors"
    if not hasattr(module, operation):
        return None, f"it has no {operation}"
    return module, None


@lru_cache(maxsize=None)
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None, "not part of this version"
    module = importlib.import_module(f"{__name__}.{name}")
    reason = module.why_not()
    return (None if reason else module), reason


def _known(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
