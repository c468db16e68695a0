"""The papers' ablations: without the stop-gradient, or without the predictor, everything goes to one point, or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from methods.__main__ import METHODS
from methods.train import train

# Steps and a decay so large that sixty steps are enough
HARD = {
    "byol": {"epochs": 20, "lr": 0.5, "hidden_dim": 64, "ema_momentum": 0.9},
    "simsiam": {"epochs": 30, "lr": 0.2, "weight_decay": 0.2},
}


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_the_monitor_shows_the_collapse(name: str, settings_of: Callable, npz: Path, capsys: pytest.CaptureFixture):
    settings = settings_of(name, **HARD[name], optimizer="sgd", knn_every=0)
    results = {}
    for missing in ("nothing", "stop_gradient", "predictor"):
        change = {} if missing == "nothing" else {missing: False}
        config = METHODS[name].Config(**settings | {"out": npz.with_name(missing)} | change)
        results[missing] = train(METHODS[name], config)
    spread = {missing: values["uniformity"] for missing, values in results.items()}
    assert spread["nothing"] < -0.5 < -0.2 < min(spread["stop_gradient"], spread["predictor"]), spread
    assert results["stop_gradient"]["feature_std"] < 0.1
    rank = {missing: values["effective_rank"] for missing, values in results.items()}
    assert rank["nothing"] > 1.5 > 1.2 > max(rank["stop_gradient"], rank["predictor"]), rank
    assert "the embeddings collapse" in capsys.readouterr().out
