"""Rows into tables, CSV, plots, and the measured table of the README."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

Row = dict[str, Any]

# What must not be taken for a number, however much it looks like one: versions, and commits such as 12e4567.
TEXT = {"commit", "date", "machine", "features", "kernels", "heap", "omp", "python", "torch", "triton", "ssl_kernels"}

COLUMNS = ("loss", "n", "d", "dtype", "precision")

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def table(rows: Iterable[Row], columns: Sequence[str], cell: Callable[[Row], str]) -> str:
    """A markdown table: a line for each combination of ``columns``, a column for each provider."""
    lines: dict[tuple, dict[str, str]] = {}
    names: list[str] = []
    for row in rows:
        lines.setdefault(tuple(row[c] for c in columns), {})[row["provider"]] = cell(row)
        if row["provider"] not in names:
            names.append(row["provider"])
    cells = [[*columns, *names]]
    cells += [[*map(str, key), *(line.get(name, "") for name in names)] for key, line in lines.items()]
    return align(cells)


def align(cells: Sequence[Sequence[str]]) -> str:
    """A markdown table of ``cells``, the first line its head, aligned for reading as plain text."""
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [{k: v if k in TEXT else _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def plot_speed(stem: Path, rows: Sequence[Row], title: str) -> list[Path]:
    """Time against size: a file ``<stem>-<loss>.png`` each, a panel a width, dtype and precision, a line a provider."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    for loss in dict.fromkeys(row["loss"] for row in rows):
        mine = [row for row in rows if row["loss"] == loss]
        panels = list(dict.fromkeys((row["d"], row["dtype"], row["precision"]) for row in mine))
        names = list(dict.fromkeys(row["provider"] for row in mine))
        across = min(3, len(panels))
        down = -(-len(panels) // across)
        figure, axes = plt.subplots(down, across, figsize=(5 * across, 3.8 * down), squeeze=False, layout="constrained")
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, panel in zip(axes.flat, panels, strict=False):
            here = [row for row in mine if (row["d"], row["dtype"], row["precision"]) == panel]
            _panel(axis, here, names, *panel)
        axes[0, 0].legend(fontsize=7)
        figure.suptitle(f"{loss}, {title}")
        paths.append(stem.with_name(f"{stem.name}-{re.sub('[^a-z0-9_]+', '-', loss)}.png"))
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _panel(axis: Any, rows: Sequence[Row], names: Sequence[str], d: int, dtype: str, precision: str) -> None:
    for k, name in enumerate(names):
        points = sorted((row["n"], row["median_ms"]) for row in rows if row["provider"] == name)
        if points:
            ours = name.startswith("ssl_kernels")
            style = "o-" if ours else ".--"
            axis.loglog(*zip(*points, strict=True), style, lw=2 if ours else 1, color=f"C{k}", label=name)
    axis.set_title(f"D = {d}, {dtype}" + (f", {precision!r}" if dtype == "float32" else ""), fontsize=10)
    axis.set_xlabel("N samples")
    axis.set_ylabel("ms")
    axis.grid(alpha=0.3)


# --------------------------------------------------------------------------------------------------------------- README
def readme_table(folder: Path) -> str:
    """The table between the markers, from the CSV files of one results folder: nothing in it is typed by hand."""
    speed = _read_all(folder, "speed")
    memory = _read_all(folder, "memory")
    if not speed:
        raise FileNotFoundError(f"{folder}: expected speed.csv, found none; run python -m benchmarks first")
    ours = next(row["provider"] for row in speed if row["provider"].startswith("ssl_kernels"))
    inputs = list(dict.fromkeys((row["dtype"], row["precision"]) for row in speed))
    heaps = list(dict.fromkeys(row["heap"] for row in speed))
    first, heap = inputs[0], heaps[0]
    head = ["loss", "N", "D", "eager ms", "ssl_kernels ms", "times faster", *(f"{name} heap" for name in heaps[1:])]
    cells = [[*head, *map(_called, inputs[1:]), "than torch.compile", "eager MiB", "ssl_kernels MiB"]]
    largest: dict[tuple, int] = {}
    for row in speed:
        largest[row["loss"], row["d"]] = max(row["n"], largest.get((row["loss"], row["d"]), 0))
    for (loss, d), n in largest.items():  # the rest is in the results
        here = [row for row in speed if (row["loss"], row["n"], row["d"]) == (loss, n, d)]
        at = {(row["dtype"], row["precision"], row["heap"], row["provider"]): row for row in here}
        mib = {
            r["provider"]: r["peak_mib"] for r in memory if tuple(r[c] for c in COLUMNS[:4]) == (loss, n, d, first[0])
        }
        ms = [f"{at[*first, heap, name]['median_ms']:.3g}" for name in ("eager", ours)]
        compiled = [_faster(row) for key, row in at.items() if key[:3] == (*first, heap) and "compile(" in key[3]]
        lines = [(*first, name, ours) for name in heaps] + [(*which, heap, ours) for which in inputs[1:]]
        faster = [_times(_faster(at[line])) if line in at else "" for line in lines]
        than = _times(_faster(at[*first, heap, ours]) / max(compiled)) if compiled else ""
        peaks = [f"{mib[name]:.0f}" if name in mib else "" for name in ("eager", ours)]
        cells.append([loss, str(n), str(d), *ms, *faster, than, *peaks])
    row = speed[0]
    about = (
        f"Forward and backward, {row['threads']} threads of {row['machine']} ({row['features']}), "
        f"torch {row['torch']}, commit {row['commit']}, {row['date']}: medians of one interleaved run. "
        f"Where nothing else is said, for {_called(first)}; other inputs are compared with eager on the same, and "
        '`"highest"` and `"high"` are those of `torch.set_float32_matmul_precision`. '
        "Eager is each loss as most of its users write it (`benchmarks/problems/`), `torch.compile` the best that it "
        "makes of any eager form; with a retained heap, freed memory stays with the process, which helps eager most. "
        "`python -m benchmarks` and `python -m benchmarks --retained-heap` repeat it."
    )
    return f"{align(cells)}\n\n{about}"


def _called(inputs: tuple[str, str]) -> str:
    dtype, precision = inputs
    return f'{dtype} "{precision}"' if dtype == "float32" else dtype


def _faster(row: Row) -> float:
    return row["median_times_faster"]


def _times(times: float) -> str:
    return f"{times:.1f}" if times >= 1 else f"{times:.2f}"  # that something is slower must not be rounded away


def _read_all(folder: Path, question: str) -> list[Row]:
    # the shortest name first: the default heap's
    paths = sorted(folder.glob(f"{question}*.csv"), key=lambda path: (len(path.name), path.name))
    return [row for path in paths for row in read_csv(path)]


def write_readme(folder: Path, readme: Path = ROOT / "README.md") -> None:
    measured, text = readme_table(folder), readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme.name}: expected the markers {BEGIN} and {END}, found neither or one")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}")
