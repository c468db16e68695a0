from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from methods.augment import Augment
from methods.config import Config
from methods.data import load_data
from methods.encoders import build_encoder
from methods.few_labels import FineTuning, few_shot, fraction_of, of_each_class

LABELS = torch.arange(300) % 3


def test_as_many_of_each_class_as_asked_for_and_all_where_there_are_fewer():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 10)
    rows = of_each_class(labels, 5, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [5, 3, 5]
    assert len(rows.unique()) == 13
    assert not torch.equal(rows, of_each_class(labels, 5, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("fraction", "counts"), [(0.001, [1, 1, 1]), (0.1, [10, 10, 10]), (1.0, [100, 100, 100])])
def test_a_share_of_every_class(fraction: float, counts: list[int]):
    assert LABELS[fraction_of(LABELS, fraction)].bincount().tolist() == counts


def test_more_shots_are_better_and_noise_is_chance():
    features = F.one_hot(LABELS, 3) + 0.7 * torch.randn(300, 3)
    split = features[:150], LABELS[:150], features[150:], LABELS[150:]
    (one, spread), (many, _) = few_shot(*split, shots=1), few_shot(*split, shots=40)
    assert 33 < one < many
    assert spread > 0
    noise, _ = few_shot(torch.randn(150, 3), LABELS[:150], torch.randn(150, 3), LABELS[150:], shots=40)
    assert 25 < noise < 42


def test_one_shot_is_the_nearest_image():
    features, labels = torch.randn(6, 4), torch.arange(6)
    assert few_shot(features, labels, features, labels, shots=1) == (100.0, 0.0)


def test_fine_tuning_learns_and_leaves_the_encoder_alone(npz):
    data = load_data(str(npz))
    encoder = build_encoder("small", 12, *data.statistics(), width=8).eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    augment = Augment(Config(data="", crop=(0.8, 1.0), jitter=0.0, grey=0.0), 12, 3)
    state = torch.get_rng_state()
    tune = FineTuning(augment, torch.device("cpu"), epochs=1, least_steps=30, batch_size=16)
    rows = torch.arange(len(data.train))
    reached = tune(encoder, data.train, data.test, rows, 3)
    assert reached > 80
    assert tune(encoder, data.train, data.test, rows, 3) == reached
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
