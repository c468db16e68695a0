from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.plane import plane_scores
from methods.t_simcne import ALL, LAST_LAYER, WIDE, TSimCNE
from methods.train import Run, train
from ssl_kernels import nt_xent_reference, t_simcne_reference


@pytest.fixture
def run(settings_of: Callable) -> Run:
    stages = {"epochs": 4, "last_layer_epochs": 1, "fine_tune_epochs": 1, "fine_tune_lr": 0.1}
    return Run(TSimCNE, TSimCNE.Config(**settings_of("tsimcne", **stages)))


def moved(run: Run, step: int) -> set[str]:
    """The parts whose weights a step changes."""
    before = {name: p.detach().clone() for name, p in run.method.named_parameters()}
    run._step(step, torch.arange(32))
    return {name.partition(".")[0] for name, p in run.method.named_parameters() if not torch.equal(p, before[name])}


def test_every_stage_trains_its_own_parts(run: Run):
    assert run.total == 8  # two steps an epoch
    assert moved(run, 0) == {"encoder", "hidden", "wide"}
    assert run.method.stage == WIDE
    assert moved(run, 4) == {"flat"}
    assert run.method.stage == LAST_LAYER
    assert moved(run, 6) == {"encoder", "hidden", "flat"}
    assert run.method.stage == ALL


def test_every_stage_has_its_own_schedule(run: Run):
    factors = [run.method.before_step(step, 80, 4) for step in range(80)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[39] < 0.01
    assert factors[40:44] == [0.25, 0.5, 0.75, 1.0]
    assert factors[60:64] == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_the_losses_are_those_of_the_stages(run: Run):
    batch = run._batch(0, 0, torch.arange(32))
    run.method.eval()
    z = run.method(batch)
    assert z[0].shape == (32, 128)
    torch.testing.assert_close(run.method.loss(z, batch), nt_xent_reference(*z, 0.5))
    run.method.stage = LAST_LAYER
    z = run.method(batch)
    assert z[0].shape == (32, 2)
    torch.testing.assert_close(run.method.loss(z, batch), t_simcne_reference(*z))
    three = [z[0], z[1], z[0] + 0.5 * z[1]]
    expected = [t_simcne_reference(three[a], three[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(run.method.loss(three, batch), sum(expected) / 3)


def test_the_map_is_measured_and_drawn(settings_of: Callable, tmp_path: Path):
    config: dict[str, Any] = {"epochs": 5, "linear_probe": True}
    results = train(TSimCNE, TSimCNE.Config(**settings_of("tsimcne", **config)))
    assert 0 <= results["knn_2d"] <= 100
    assert 0 <= results["knn_2d_of_tsne"] <= 100
    assert (tmp_path / "run" / "plane.png").stat().st_size > 10_000


def test_the_two_last_stages_leave_epochs_for_the_first(settings_of: Callable):
    with pytest.raises(ValueError, match="epochs: expected more than the 3 of the two last stages, got 3"):
        train(TSimCNE, TSimCNE.Config(**settings_of("tsimcne", epochs=3, last_layer_epochs=2)))


def test_votes_in_the_plane_are_those_of_the_nearest_by_distance():
    points, bank, labels = torch.randn(40, 2), torch.randn(100, 2), torch.randint(0, 3, (100,))
    votes = plane_scores(points, bank, labels, 3, k=7)
    for point, vote in zip(points, votes, strict=True):
        nearest = (bank - point).square().sum(1).argsort()[:7]
        assert torch.equal(vote, F.one_hot(labels[nearest], 3).sum(0).float())
    far = plane_scores(
        torch.tensor([[10.0, 0.0]]), torch.tensor([[1.0, 0.0], [9.0, 5.0]]), torch.tensor([0, 1]), 2, k=1
    )
    assert far.argmax() == 1  # not the one in the same direction
