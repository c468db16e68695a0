"""One file a question. Each has ``ask(losses, quick) -> rows``, a ``TITLE`` and the ``COLUMNS`` of its table."""

from types import ModuleType

from benchmarks.questions import accuracy, memory, speed, state, step

QUESTIONS: dict[str, ModuleType] = {
    "speed": speed,
    "memory": memory,
    "accuracy": accuracy,
    "step": step,
    "state": state,
}
