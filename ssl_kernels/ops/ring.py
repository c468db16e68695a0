r"""A queue of embeddings in a ring, on the device: MoCo's part."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels import backends
from ssl_kernels.ops.checks import FLOATS, check_not_empty, check_rows
from ssl_kernels.ops.library import define, plain


def enqueue_(
    queue: Tensor,
    pointer: Tensor,
    rows: Tensor,
    *,
    normalize: bool = True,
    wrap: bool = True,
    backend: str | None = None,
) -> None:
    r"""Writes a batch of rows over the oldest rows of ``queue`` and advances ``pointer``, in one launch.

    Row ``j`` of the batch goes to slot ``(pointer + j) % K`` and ``pointer`` becomes ``(pointer + B) % K``; of a batch
    longer than the queue the last ``K`` rows stay. The pointer is neither read by the host nor written by it.

    Args:
        queue: ``[K, D]``, float32/64, bfloat16 or float16, columns contiguous. Rows are rounded to its dtype.
        pointer: the slot of the next row, int64, one element, on the queue's device; from 0 to K - 1.
        rows: ``[B, D]`` of any floating-point dtype, on the queue's device.
        normalize: divide each row by ``max(norm, 1e-12)`` first.
        wrap: False: rows that do not fit before the end of the queue are dropped, and the pointer goes to 0 whenever
            the end is reached.
        backend: ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``; default: the fastest available for the device.

    Raises:
        ValueError: shapes or devices disagree, a queue of no rows, unknown backend; on a CPU also a pointer outside
            the queue.
        TypeError: not floating-point tensors, a pointer that is not int64.
    """
    backend = backend or backends.override()
    if isinstance(rows, Tensor) and plain((queue, rows)):
        _implementation(queue, pointer, rows, normalize, wrap, backend)
    else:
        with torch.no_grad():
            torch.ops.ssl_kernels.enqueue_(queue, pointer, rows, normalize, wrap, backend)


def _check(queue, pointer, rows) -> None:
    """One condition where all is well: at 256 rows the checks one by one took a tenth of the call."""
    shape, given = queue.shape, rows.shape
    if not (
        len(shape) == len(given) == 2
        and shape[1] == given[1]
        and shape[0] * shape[1] > 0
        and queue.dtype in FLOATS
        and rows.dtype in FLOATS
        and queue.stride(1) == 1
        and pointer.dtype == torch.int64
        and pointer.numel() == 1
        and queue.device == rows.device == pointer.device
    ):
        _check_one_by_one(queue, pointer, rows)


def _check_one_by_one(queue, pointer, rows) -> None:
    check_rows("queue", queue)
    check_rows("rows", rows)
    check_not_empty("queue", queue)
    if rows.shape[1] != queue.shape[1]:
        raise ValueError(f"rows: expected width {queue.shape[1]} as queue, got {rows.shape[1]}")
    if queue.stride(1) != 1 and queue.shape[1] != 1:
        raise ValueError(f"queue: expected contiguous columns, got strides {queue.stride()}")
    if pointer.dtype != torch.int64:
        raise TypeError(f"pointer: expected int64, got {pointer.dtype}")
    if pointer.numel() != 1:
        raise ValueError(f"pointer: expected one element, got shape {tuple(pointer.shape)}")
    for name, t in (("pointer", pointer), ("rows", rows)):
        if t.device != queue.device:
            raise ValueError(f"{name}: expected device {queue.device} as queue, got {t.device}")


def _fake(queue, pointer, rows, normalize, wrap, backend):
    _check(queue, pointer, rows)


def _implementation(queue, pointer, rows, normalize, wrap, backend):
    _check(queue, pointer, rows)
    if rows.shape[0]:
        rows = rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
        backends.operation(backend, queue.device, "enqueue_")(queue, pointer, rows, normalize, wrap)
        torch.autograd.graph.increment_version((queue, pointer))


define(
    "enqueue_(Tensor(a!) queue, Tensor(b!) pointer, Tensor rows, bool normalize, bool wrap, str backend) -> ()",
    _implementation,
    _fake,
)
