"""What may come in, said once: every message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every result: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_rows(name: str, t: Tensor) -> None:
    """A floating-point tensor ``[N, D]``."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions [N, D], got shape {tuple(t.shape)}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {t.dtype}")


def check_alike(name: str, t: Tensor, first_name: str, first: Tensor) -> None:
    """Of one device and dtype. Dtypes may differ under autocast, which widens."""
    if t.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {t.device}")
    if t.dtype != first.dtype and not torch.is_autocast_enabled(t.device.type):
        raise ValueError(f"{name}: expected dtype {first.dtype} as {first_name}, got {t.dtype}")


def check_views(views: Sequence[Tensor], names: Sequence[str] = ("z1", "z2")) -> None:
    """Views of the same samples: alike in shape, dtype and device, with at least one row and one column."""
    first = views[0]
    for k, z in enumerate(views):
        name = names[k] if k < len(names) else f"more[{k - len(names)}]"
        check_rows(name, z)
        if z.shape != first.shape:
            raise ValueError(f"{name}: expected shape {tuple(first.shape)} as {names[0]}, got {tuple(z.shape)}")
        check_alike(name, z, names[0], first)
    check_not_empty(names[0], first)


def check_not_empty(name: str, t: Tensor) -> None:
    if t.shape[0] == 0 or t.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one row and one column, got shape {tuple(t.shape)}")


def check_width(name: str, t: Tensor, first_name: str, first: Tensor) -> None:
    """Rows of one device, dtype and width with ``first``."""
    check_rows(name, t)
    check_alike(name, t, first_name, first)
    if t.shape[1] != first.shape[1]:
        raise ValueError(f"{name}: expected width {first.shape[1]} as {first_name}, got {t.shape[1]}")


def check_pairs(first_name: str, first: Tensor, name: str, t: Tensor, offset: int = 0, *, more: bool = True) -> None:
    """Rows ``first`` and the rows ``t`` of their positives, the first of them at ``offset``; others may follow."""
    check_rows(first_name, first)
    check_not_empty(first_name, first)
    check_width(name, t, first_name, first)
    rows = first.shape[0]
    if offset < 0:
        raise ValueError(f"offset: expected 0 or more, got {offset}")
    if t.shape[0] < offset + rows or (not more and t.shape[0] != rows):
        least = "at least " if more else ""
        raise ValueError(f"{name}: expected {least}{offset + rows} rows for {rows} of {first_name}, got {t.shape[0]}")


def check_parts(name: str, parts: Sequence[Tensor], first_name: str, first: Tensor) -> int:
    """Tensors that stand one below the other, as wide as ``first``; returns how many rows they have together."""
    rows = 0
    for k, t in enumerate(parts):
        check_width(f"{name}[{k}]", t, first_name, first)
        rows += t.shape[0]
    if rows == 0 or first.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one row and one column, got {rows} rows of width {first.shape[1]}")
    return rows


def check_matrix(x: Tensor, y: Sequence[Tensor], offset: int | None) -> int:
    """Rows ``x`` against columns ``y``, the positive of row 0 at column ``offset``; returns how many columns."""
    check_rows("x", x)
    check_not_empty("x", x)
    columns = check_parts("y", y, "x", x)
    if offset is not None and not 0 <= offset <= columns - x.shape[0]:
        raise ValueError(
            f"offset: expected 0 to {columns - x.shape[0]} for {x.shape[0]} rows and {columns} columns, got {offset}"
        )
    return columns


def check_number(name: str, t: Tensor | None, first_name: str, first: Tensor) -> None:
    """None, or one floating-point element on the features' device."""
    if t is None:
        return
    if t.numel() != 1:
        raise ValueError(f"{name}: expected one element, got shape {tuple(t.shape)}")
    if not t.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {t.dtype}")
    if t.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {t.device}")
