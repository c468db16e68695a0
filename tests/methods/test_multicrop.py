from __future__ import annotations

import torch

from methods.augment import Augment
from methods.dino import DINO
from methods.multicrop import of_each_view

PLAIN = {"crop": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def augment(**changes: object) -> Augment:
    return Augment(DINO.Config(data="", **(PLAIN | changes)), 32, 3)


def images(n: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)


def test_large_views_come_first_and_small_ones_after_them():
    views = augment(views=2, local_views=3, view_size=24, local_size=16, crop=(0.4, 1.0))(images())
    assert [tuple(v.shape) for v in views] == 2 * [(4, 3, 24, 24)] + 3 * [(4, 3, 16, 16)]


def test_small_views_are_half_as_wide_in_whole_patches_unless_told():
    for patch, size in ((4, 16), (5, 20), (1, 16)):
        assert augment(patch_size=patch).sizes == {32, size}
    assert augment(view_size=20, crop=(0.4, 1.0)).sizes == {20, 12}


def test_the_monitor_gets_large_views_only():
    assert [v.shape[-1] for v in augment(local_views=3)(images(), 2)] == [32, 32]


def test_small_views_show_a_small_part():
    """Of a ramp, from black on the left to white on the right."""
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).expand(16, 3, 32, 32)
    large, small = augment(views=1, local_views=1, local_crop=(0.05, 0.1))(ramp)
    assert (large.amax((1, 2, 3)) - large.amin((1, 2, 3)) > 0.99).all()
    assert (small.amax((1, 2, 3)) - small.amin((1, 2, 3)) < 0.45).all()


def test_only_every_second_view_is_solarized():
    x = images()
    first, second, third = augment(views=3, local_views=0, solarize=1.0)(x)
    assert torch.equal(first, x / 255) and torch.equal(third, first)
    torch.testing.assert_close(second, torch.where(first >= 0.5, 1 - first, first))


def test_views_are_blurred_each_as_often_as_asked():
    x = images()
    first, second = augment(blur=1.0, second_blur=0.0)(x, 2)
    assert torch.equal(second, x / 255)
    assert (first.flatten(1) != second.flatten(1)).any(1).all()
    first, second = augment(blur=1.0)(x, 2)
    assert (second.flatten(1) != x.flatten(1) / 255).any(1).all()
    torch.manual_seed(0)
    (_, sharp), _ = augment(views=1, local_views=1)(x), torch.manual_seed(0)
    (_, blurred) = augment(views=1, local_views=1, local_blur=1.0)(x)
    assert sharp.shape == blurred.shape and not torch.equal(sharp, blurred)


def test_views_of_one_size_go_through_the_network_together():
    calls = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return x.flatten(1).mean(1, keepdim=True)

    views = [torch.rand(5, 3, s, s) for s in (8, 8, 4, 4, 4)]
    out = of_each_view(network, views)
    assert calls == [(10, 3, 8, 8), (15, 3, 4, 4)]
    for view, mean in zip(views, out, strict=True):
        torch.testing.assert_close(mean[:, 0], view.mean((1, 2, 3)))
