"""The processes of a run, as ``torchrun`` starts them; without it there is one, and nothing here does anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_kernels.losses.gather import gather_rows, world_size

__all__ = ["device_of", "from_all", "mean_over_processes", "processes", "rank", "world_size"]


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Within it, the processes that torchrun started know each other; ``device`` is the setting of that name."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    here = device_of(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process; 0 is the one that evaluates and writes."""
    return dist.get_rank() if world_size() > 1 else 0


def from_all(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, with their gradients."""
    return gather_rows(x, world_size()) if world_size() > 1 else x


def mean_over_processes(value: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(value)
    return value / world_size()


def device_of(name: str) -> torch.device:
    """``auto`` is this process's GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    local = os.environ.get("LOCAL_RANK", "0")
    if name == "auto":
        return torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected auto, cpu or a GPU that is here, got {name!r}: {reason}") from error
    return device
