"""DINOv2's losses by their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat.dinov2 import DINOLoss, KoLeoLoss, iBOTPatchLoss
from ssl_kernels.testing import evaluate


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(ours, theirs, inputs):
    got, expected = evaluate(ours, inputs), evaluate(theirs, inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_dino_sums_over_all_pairs_of_the_means_of_each():
    probabilities = list(draw(2, 4, 9, seed=1).softmax(-1))

    def theirs(s):
        return sum(-(t * (v / 0.1).log_softmax(-1)).sum(-1).mean() for v in s for t in probabilities)

    same(lambda s: DINOLoss(9)(list(s), probabilities), theirs, {"s": draw(3, 4, 9)})


def test_the_centre_moves_at_the_next_step():
    loss, g = DINOLoss(9, center_momentum=0.8), draw(4, 9)
    first = loss.softmax_center_teacher(g, 0.05)
    torch.testing.assert_close(first, (g / 0.05).softmax(-1))
    loss.update_center(g)
    assert not loss.center.any() and not loss.updated
    second = loss.softmax_center_teacher(g, 0.05)
    torch.testing.assert_close(loss.center, 0.2 * g.mean(0, keepdim=True))
    torch.testing.assert_close(second, ((g - 0.2 * g.mean(0)) / 0.05).softmax(-1))
    assert set(loss.state_dict()) == {"center"}
    loss.softmax_center_teacher(g, 0.05)
    torch.testing.assert_close(loss.center, 0.2 * g.mean(0, keepdim=True))  # once


@pytest.mark.parametrize("make", [DINOLoss, iBOTPatchLoss])
def test_sinkhorn_knopp(make):
    logits = draw(6, 9)
    q = (logits.double() / 0.3).exp().T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / 9
        q = q / q.sum(0, keepdim=True) / 6
    count = torch.tensor(6)
    more = (count,) if make is iBOTPatchLoss else ()
    torch.testing.assert_close(make(9).sinkhorn_knopp_teacher(logits, 0.3, *more), (q * 6).T.float())
    assert count == 6


MASK = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])


def test_all_patches():
    t = draw(3, 3, 7, seed=1).softmax(-1)

    def theirs(s):
        value = (t * (s / 0.1).log_softmax(-1)).sum(-1)
        return -((value * MASK).sum(-1) / MASK.sum(-1).clamp(min=1.0)).mean()

    same(lambda s: iBOTPatchLoss(7)(s, t, MASK), theirs, {"s": draw(3, 3, 7)})


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("given", [False, True])
def test_masked_patches(padding, given):
    t, m = draw(5 + padding, 7, seed=1).softmax(-1), int(MASK.sum())
    weight = (1 / MASK.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(MASK)[MASK]

    def theirs(s):
        return -((t * (s / 0.1).log_softmax(-1)).sum(-1)[:m] * weight).sum() / 3

    def ours(s):
        return iBOTPatchLoss(7).forward_masked(s, t, MASK, m, weight if given else None)

    same(ours, theirs, {"s": draw(5 + padding, 7)})


def test_koleo():
    x = draw(8, 5)
    z = F.normalize(x, dim=1)
    index = (z @ z.T).fill_diagonal_(-1).argmax(1)
    expected = -(F.pairwise_distance(z, z[index], 2, 1e-6) + 1e-6).log().mean()
    torch.testing.assert_close(KoLeoLoss()(x, eps=1e-6), expected)
