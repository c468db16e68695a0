from __future__ import annotations

import pytest
import torch

from methods.masking import BlockMasks


@pytest.mark.parametrize("side", [4, 7, 14])
def test_every_image_has_its_share_hidden_in_one_of_its_views(side: int):
    masks = BlockMasks(views=2, masked=1, ratio=(0.1, 0.5))(range(64), side * side)
    assert masks.shape == (128, side * side) and masks.dtype == torch.bool
    hidden = masks.view(2, 64, -1).sum(2)
    assert ((hidden > 0).sum(0) == 1).all()
    counts = hidden.amax(0)
    assert counts.min() >= round(0.1 * side**2) and counts.max() <= round(0.5 * side**2)
    assert counts.unique().numel() > side / 2
    assert 16 < (hidden[0] > 0).sum() < 48  # whichever of the two


def test_a_share_is_met_exactly():
    masks = BlockMasks(views=1, masked=1, ratio=(0.4, 0.4))(range(20), 100)
    assert masks.sum(1).eq(40).all()


def test_all_of_the_patches_can_be_hidden():
    assert BlockMasks(views=1, masked=1, ratio=(1.0, 1.0))(range(3), 36).all()


def test_what_is_hidden_are_blocks():
    """Most hidden patches have a hidden one beside them; of patches hidden one by one, fewer than half."""

    def neighbours(masks: torch.Tensor) -> float:
        m = masks.view(-1, 14, 14)
        pairs = (m[:, 1:] & m[:, :-1]).sum() + (m[:, :, 1:] & m[:, :, :-1]).sum()
        return (pairs / m.sum()).item()

    masks = BlockMasks(views=1, masked=1, ratio=(0.2, 0.2))(range(100), 196)
    alone = torch.rand(100, 196).argsort(1) < 39
    assert neighbours(masks) > 1.2 > 0.6 > neighbours(alone)


def test_masks_are_a_function_of_each_seed():
    masks = BlockMasks(views=2, masked=1, ratio=(0.1, 0.5))
    whole = masks([5, 6, 7, 8], 36).view(2, 4, 36)
    assert torch.equal(masks([7], 36).view(2, 36), whole[:, 2])
    assert not torch.equal(whole[:, 0], whole[:, 1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"masked": 3}, "masked_views: expected 1 to 2, the large views, got 3"),
        ({"masked": 0}, "masked_views: expected 1 to 2"),
        ({"ratio": (0.5, 0.1)}, "mask_ratio: expected 0 < smallest <= largest <= 1"),
        ({"ratio": (0.0, 0.1)}, "mask_ratio"),
    ],
)
def test_masks_that_cannot_be(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        BlockMasks(**{"views": 2, "masked": 1, "ratio": (0.1, 0.5)} | wrong)
