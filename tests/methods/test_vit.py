"""The small transformer, timm's behind the same methods, and the picture of their attention."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.attention import draw_attention
from methods.encoders import Encoder, build_encoder

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])


@pytest.fixture(params=["vit", "timm:vit_tiny_patch16_224"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param != "vit" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return build_encoder(request.param, 64, MEAN, STD, width=8, patch_size=16).eval()


def test_features_are_the_class_token(encoder: Encoder):
    images = torch.rand(2, 3, 64, 64)
    tokens = encoder(images, tokens=True)
    assert tokens.shape == (2, 1 + 16, encoder.dim)
    torch.testing.assert_close(encoder(images), tokens[:, 0])


def test_a_hidden_patch_does_not_show(encoder: Encoder):
    images = torch.rand(1, 3, 64, 64)
    other = images.clone()
    other[:, :, 16:32, 48:] = torch.rand(1, 3, 16, 16)  # the patch in row 1, column 3
    mask, token = torch.arange(16)[None] == 7, torch.randn(encoder.dim, requires_grad=True)
    seen, unseen = encoder(images, tokens=True), encoder(images, mask, token, tokens=True)
    assert not torch.allclose(seen, encoder(other, tokens=True), atol=1e-4)
    assert not torch.allclose(seen, unseen, atol=1e-4)
    torch.testing.assert_close(unseen, encoder(other, mask, token, tokens=True))
    unseen[:, 7].square().sum().backward()
    assert token.grad.norm() > 0


def test_attention_is_a_share_for_each_patch(encoder: Encoder):
    shares = encoder.attention(torch.rand(2, 3, 64, 64))
    assert shares.shape[0] == 2 and shares.shape[2:] == (4, 4)
    assert (shares > 0).all() and (shares.sum((2, 3)) < 1).all()  # the rest is the class token's own


def test_our_attention_is_what_the_last_block_weighs_its_values_with():
    vit = build_encoder("vit", 16, MEAN, STD, width=8).backbone
    x = torch.randn(2, 17, 32)
    attn = vit.blocks[-1].attn
    v = attn._heads_of(x)[2]
    mixed = (attn.of_class(x)[:, :, None] @ v).transpose(1, 2).flatten(2)[:, 0]
    torch.testing.assert_close(attn.proj(mixed), attn(x)[:, 0])


def test_views_of_other_sizes_have_positions_in_between(encoder: Encoder):
    assert encoder(torch.rand(2, 3, 32, 32), tokens=True).shape == (2, 1 + 4, encoder.dim)
    assert encoder.attention(torch.rand(1, 3, 96, 96)).shape[2:] == (6, 6)


def test_positions_matter_and_are_those_of_the_right_patches():
    encoder = build_encoder("vit", 16, MEAN, STD, width=8)
    plain = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        encoder.backbone.positions.zero_()
        encoder.backbone.positions[:, :, 1, 2] = 1.0
        tokens = encoder.backbone._embedded(plain, None, None)[0, 1:]
    odd = (tokens - tokens[0]).abs().sum(1) > 1
    assert odd.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_sides_that_are_not_whole_patches_are_refused():
    with pytest.raises(ValueError, match=r"^patch_size: expected a divisor of 30, the side of images or views, got 4$"):
        build_encoder("vit", 30, MEAN, STD)


def test_a_convolutional_encoder_has_no_tokens():
    assert not build_encoder("small", 16, MEAN, STD).has_tokens


def test_the_picture_shows_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Images above, and below each the mean over its heads, brightest where they look."""
    encoder = build_encoder("vit", 16, MEAN, STD, width=8)
    weights = torch.full((4, 2, 4, 4), 0.01)
    weights[:, :, 0, 3] = 0.5
    monkeypatch.setattr(encoder, "attention", lambda images: weights[: len(images)])
    draw_attention(tmp_path / "attention.png", encoder, torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    from matplotlib.image import imread

    picture = imread(tmp_path / "attention.png")[..., :3].sum(2)
    below = picture[picture.shape[0] // 2 :, : picture.shape[1] // 4]
    h, w = below.shape
    corner = below[h // 8 : h // 4, 6 * w // 8 : 7 * w // 8]
    assert corner.mean() > 2 > 1 > np.median(below[h // 2 : 3 * h // 4, w // 4 : w // 2])


def test_simclr_trains_one_too(settings: Callable, tmp_path: Path):
    from methods.simclr import SimCLR
    from methods.train import train

    results = train(SimCLR, SimCLR.Config(**settings(encoder="vit", epochs=2, knn_every=0)))
    assert results["feature_std"] > 0.1
