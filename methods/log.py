"""Metrics of a run: one JSON object a line, always; TensorBoard beside it where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Log:
    """Appends to ``metrics.jsonl``. Nothing that was written is taken back or written twice.

    A resumed run goes through the steps since its checkpoint a second time, to the same numbers: the lines of those
    that are there already are not repeated. Only a last line cut short by a kill is dropped, to be written again.
    TensorBoard, which buffers, is told to forget what it has from ``start`` on. Of several
    processes one writes, the others are ``mute``.
    """

    def __init__(self, folder: Path, tensorboard: bool, start: int = 0, mute: bool = False) -> None:
        path = Path(os.devnull) if mute else folder / "metrics.jsonl"
        self.written = set()
        if path.exists():
            whole = path.read_bytes()
            complete = whole[: whole.rfind(b"\n") + 1]
            if len(complete) < len(whole):
                with open(path, "r+b") as file:
                    file.truncate(len(complete))
            self.written = {(r["kind"], r["step"]) for r in map(json.loads, complete.splitlines())}
        self.file = open(path, "a")  # noqa: SIM115 - closed by __exit__
        self.board = None
        if tensorboard and not mute and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def __call__(self, kind: str, step: int, **values: Any) -> None:
        """One line ``{"kind": ..., "step": ..., ...}``; ``kind`` is train or eval."""
        if (kind, step) not in self.written:
            self.written.add((kind, step))
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Nothing that comes before a checkpoint may reach the disk after it: the resumed run would not write it."""
        os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind, in the order of their steps."""
    with open(folder / "metrics.jsonl") as file:
        rows = [r for r in map(json.loads, file) if r["kind"] == kind]
    return sorted(rows, key=lambda r: r["step"])
