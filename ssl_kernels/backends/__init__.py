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
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

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


def resolve(name: str, device: torch.device) -> ModuleType:
    """The module that serves a call on ``device``: the one called ``name``, or the fastest available if it is empty.

    Raises:
        ValueError: unknown name, or the named backend cannot serve this device; says why and what is available.
    """
    return _resolve(name, device.type)


@lru_cache(maxsize=None)
def _resolve(name: str, device: str) -> ModuleType:
    if name:
        _known(name)
        module, reason = _load(name)
        if module is not None and device not in module.DEVICES:
            reason = f"it serves {' and '.join(module.DEVICES)} tensors"
        if module is None or reason:
            here = [n for n in NAMES if (m := _load(n)[0]) is not None and device in m.DEVICES]
            raise ValueError(f"backend={name!r} cannot serve {device} tensors: {reason}; available: {', '.join(here)}")
        return module
    reasons: list[str] = []
    for candidate in ORDER.get(device, ("reference",)):
        module, reason = _load(candidate)
        if module is not None and device in module.DEVICES:
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
