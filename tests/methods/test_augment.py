from __future__ import annotations

import pytest
import torch

from methods.augment import Augment
from methods.simclr import SimCLR

OFF = {"crop": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def augment(size: int = 16, channels: int = 3, **changes) -> Augment:
    return Augment(SimCLR.Config(data="", **(OFF | changes)), size, channels)


def one_image_many_times(n: int = 16, size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8).expand(n, -1, -1, -1)


def test_nothing_switched_on_changes_nothing():
    images = one_image_many_times()
    for view in augment()(images):
        torch.testing.assert_close(view, images / 255)


@pytest.mark.parametrize(
    "one",
    [
        {"crop": (0.2, 0.9)},
        {"flip": 0.5},
        {"jitter": 0.5},
        {"grey": 0.5},
        {"blur": 0.5},
        {"rotate": 20.0},
        {"translate": 0.2},
        {"shear": 20.0},
        {"zoom": (0.7, 1.3)},
    ],
    ids=lambda one: next(iter(one)),
)
def test_every_image_has_its_own_parameters(one: dict):
    first, second = augment(**one)(one_image_many_times())
    assert len(first.unique(dim=0)) > 1
    assert not torch.equal(first, second)
    assert first.shape == (16, 3, 16, 16)
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_seed_gives_the_same_views_again():
    images, recipe = one_image_many_times(), augment(crop=(0.2, 1.0), flip=0.5, jitter=0.5, grey=0.2, blur=0.5)
    torch.manual_seed(7)
    before = recipe(images)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(before, recipe(images), strict=True))


def test_grey_images_stay_grey_images():
    views = augment(size=8, channels=1, crop=(0.2, 1.0), jitter=0.5, grey=0.2)(one_image_many_times(4, 8, 1))
    assert [tuple(v.shape) for v in views] == [(4, 1, 8, 8)] * 2


def test_views_can_be_smaller_than_the_images():
    assert augment(crop=(0.2, 1.0), view_size=8)(one_image_many_times())[0].shape == (16, 3, 8, 8)
    assert augment(view_size=8)(one_image_many_times())[0].shape == (16, 3, 8, 8)


def test_as_many_views_as_asked_for():
    assert len(augment(crop=(0.2, 1.0))(one_image_many_times(2), views=3)) == 3
