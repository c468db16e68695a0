"""How several runs went, in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from methods.log import read_metrics
from methods.pictures import pyplot


@dataclass(frozen=True)
class Curves:
    """A number of several runs over their epochs, in one picture."""

    runs: tuple[Path, ...]
    """Their folders, by whose names they are called."""
    out: Path = Path("runs/curves.svg")
    """The picture, as .svg, .png or .pdf."""
    metric: str = "knn"
    """What is drawn, by its name in metrics.jsonl: knn, feature_std, effective_rank, uniformity ..."""


def curves(settings: Curves) -> None:
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in settings.runs:
        if not (run / "metrics.jsonl").exists():
            raise FileNotFoundError(f"runs: expected the folder of a run, there is no metrics.jsonl in {run}")
        rows = [row for row in read_metrics(run, "eval") if settings.metric in row]
        if not rows:
            raise ValueError(f"metric: expected a number that was logged in {run}, got {settings.metric!r}")
        ax.plot([row["epoch"] for row in rows], [row[settings.metric] for row in rows], "o-", ms=3, label=run.name)
    ax.set(xlabel="epoch", ylabel="kNN accuracy, %" if settings.metric == "knn" else settings.metric)
    ax.legend(frameon=False)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.out)
    plt.close(figure)
    print(f"picture: {settings.out}")
