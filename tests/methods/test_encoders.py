from __future__ import annotations

import importlib.util

import pytest
import torch

from methods.encoders import build_encoder

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])


@pytest.mark.parametrize(("name", "size", "dim"), [("small", 8, 256), ("small", 32, 256), ("resnet18-cifar", 32, 512)])
def test_features_and_gradients(name: str, size: int, dim: int):
    encoder = build_encoder(name, size, MEAN, STD)
    features = encoder(torch.rand(2, 3, size, size))
    assert features.shape == (2, dim) == (2, encoder.dim)
    features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_resnet18_has_the_known_number_of_parameters():
    encoder = build_encoder("resnet18-cifar", 32, MEAN, STD)
    assert sum(p.numel() for p in encoder.parameters()) == 11_168_832  # 11,173,962 less the classifier's 5,130


def test_images_are_standardised_inside():
    encoder = build_encoder("small", 8, MEAN, STD).eval()
    images = torch.rand(4, 3, 8, 8)
    by_hand = encoder.backbone((images - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    torch.testing.assert_close(encoder(images), by_hand)


def test_channels_last_changes_nothing_but_the_layout():
    plain = build_encoder("small", 16, MEAN, STD, channels_last=False).eval()
    last = build_encoder("small", 16, MEAN, STD, channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    assert next(last.parameters()).is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(plain(images), last(images))


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(ValueError, match=r"^encoder: expected small, .* got 'resnet19'$"):
        build_encoder("resnet19", 32, MEAN, STD)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        build_encoder(f"{library}:resnet18", 32, MEAN, STD)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_resnet18_of_a_library(name: str):
    if importlib.util.find_spec(library := name.partition(":")[0]) is None:
        pytest.skip(f"{library} is not installed")
    encoder = build_encoder(name, 64, MEAN, STD)
    assert encoder.dim == 512
    with pytest.raises(ValueError, match="encoder: expected"):
        build_encoder(name + "x", 64, MEAN, STD)
