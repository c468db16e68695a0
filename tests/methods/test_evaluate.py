from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.evaluate import accuracy, collapse_monitor, features_of, knn_scores, linear_probe


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.1), (20, 0.07), (1000, 0.5)])
def test_knn_is_the_plain_vote(k: int, temperature: float):
    queries, bank, labels = torch.randn(30, 6), torch.randn(200, 6), torch.randint(0, 4, (200,))
    scores = knn_scores(queries, bank, labels, 4, k, temperature)
    for query, score in zip(queries, scores, strict=True):
        similarity = F.cosine_similarity(query[None], bank)
        votes = torch.zeros(4)
        nearest = similarity.argsort(descending=True)[:k]
        for j in nearest:
            votes[labels[j]] += torch.exp(similarity[j] / temperature)
        torch.testing.assert_close(score / score.sum(), votes / votes.sum())


def test_knn_has_no_overflow_at_a_small_temperature():
    x = torch.randn(10, 4)
    scores = knn_scores(x, x, torch.arange(10), 10, 5, temperature=1e-3)
    assert scores.isfinite().all()
    assert accuracy(scores, torch.arange(10)) == 100


def test_accuracy_is_in_per_cent():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75


def test_linear_probe_separates_what_is_separable():
    labels = torch.arange(90) % 3
    features = F.one_hot(labels, 3) * 5.0 + torch.randn(90, 3)
    assert linear_probe(features[:60], labels[:60], features[60:], labels[60:]) > 95
    assert linear_probe(torch.randn(60, 3), labels[:60], torch.randn(30, 3), labels[60:]) < 70


def test_features_are_taken_in_evaluation_mode_and_leave_the_mode_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train()
    images = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    torch.testing.assert_close(features_of(model, images, torch.device("cpu")), torch.ones(3, 4))
    assert model.training


def test_monitor_of_a_collapse():
    constant = collapse_monitor(lambda x: torch.ones(len(x), 8), [torch.zeros(64, 1)] * 2)
    assert constant["feature_std"] == pytest.approx(0, abs=1e-6)
    assert constant["alignment"] == pytest.approx(0, abs=1e-6)
    assert constant["uniformity"] == pytest.approx(0, abs=1e-6)
    assert constant["effective_rank"] == pytest.approx(1, abs=1e-4)


def test_the_rank_shows_what_batch_norms_hide():
    """Four points, apart in every dimension: all the spread there can be, in three directions."""
    points = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1.0]]).repeat_interleave(8, 0)
    values = collapse_monitor(lambda x: points.T[x], [torch.arange(64) % 4] * 2)
    assert values["feature_std"] == pytest.approx(1, abs=1e-3)
    assert values["effective_rank"] == pytest.approx(3, abs=1e-3)


def test_monitor_of_a_whole_sphere():
    points = torch.randn(2, 1000, 64)
    values = collapse_monitor(lambda x: x, list(points))
    assert values["feature_std"] == pytest.approx(1, abs=0.02)
    assert values["alignment"] == pytest.approx(2, abs=0.05)  # two independent points
    assert values["uniformity"] == pytest.approx(-4, abs=0.2)
    assert values["effective_rank"] == pytest.approx(62, abs=2)
