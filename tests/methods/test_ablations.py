from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from methods.__main__ import main
from methods.ablations import AUGMENTATIONS, TEMPERATURES
from methods.log import read_metrics


def test_what_is_finished_is_not_repeated_and_the_rest_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [name.replace(",", "").replace(" ", "-") for name in AUGMENTATIONS] + [f"tau-{t:g}" for t in TEMPERATURES]
    for k, name in enumerate(names[1:]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"knn": 30.0 + k}))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", images=rng.integers(0, 256, (200, 8, 8, 3), np.uint8), labels=np.arange(200) % 4)
    main(
        ["ablations", "--data", str(tmp_path / "noise.npz"), "--out", str(tmp_path), "--epochs", "1", "--threads", "1"]
    )
    trained = [name for name in names if (tmp_path / name / "checkpoint.pt").exists()]
    assert trained == ["all"]
    knn = json.loads((tmp_path / "all" / "results.json").read_text())["knn"]
    assert json.loads((tmp_path / "all" / "config.json").read_text())["blur"] == 0.5
    table = capsys.readouterr().out
    for line in (
        f"| all | {knn:.1f} |",
        "| no blur | 30.0 |",
        "| no crop | 33.0 |",
        "| 0.05 | 34.0 |",
        "| 0.2 | 30.0 |",  # the recipe's: that without blur
        "| 1.0 | 37.0 |",
    ):
        assert line in table
    assert "<svg" in (tmp_path / "ablations.svg").read_text()

    main(["curves", "--runs", str(tmp_path / "all"), "--out", str(tmp_path / "curves.svg"), "--metric", "alignment"])
    assert len(read_metrics(tmp_path / "all", "eval")) == 1
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_curves_of_what_is_not_there(tmp_path: Path):
    with pytest.raises(SystemExit, match="^error: runs: expected the folder of a run"):
        main(["curves", "--runs", str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="^error: metric: expected a number that was logged in .* got 'map'"):
        main(["curves", "--runs", str(tmp_path), "--metric", "map"])
