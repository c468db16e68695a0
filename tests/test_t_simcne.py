"""t-SimCNE: what the table of cases does not say of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import TSimCNELoss, t_simcne_loss


@pytest.fixture
def views(generator):
    return torch.randn(2, 9, 2, dtype=torch.float64, generator=generator).unbind()


def test_the_paper_s_loss(views):
    """``-log`` of ``1 / (1 + d^2)`` of the pair, over the sum of all others'."""
    z = torch.cat(views)
    kernel = 1 / (1 + (z[:, None] - z[None, :]).square().sum(2))
    pair = torch.cat([kernel.diagonal(9), kernel.diagonal(-9)])
    torch.testing.assert_close(t_simcne_loss(*views), -(pair / (kernel.sum(1) - 1)).log().mean())


def test_the_gaussian_s_temperature_is_its_variance(views):
    z = torch.cat(views)
    logits = -(z[:, None] - z[None, :]).square().sum(2) / (2 * 0.3)
    logits.fill_diagonal_(-math.inf)
    expected = F.cross_entropy(logits, (torch.arange(18) + 9) % 18)
    torch.testing.assert_close(t_simcne_loss(*views, 0.3, dof=math.inf), expected)
    torch.testing.assert_close(t_simcne_loss(*views, 0.3, dof=1e9), expected)


def test_it_does_not_see_where_the_points_are(views):
    a, b = (z.float() for z in views)
    shift = torch.tensor([512.0, -256.0])  # exact in float32 but for the points' own last digits
    a, b = (a + shift) - shift, (b + shift) - shift
    assert torch.equal(t_simcne_loss(a + shift, b + shift), t_simcne_loss(a, b))


def test_a_single_pair_has_nobody_to_repel():
    a, b = torch.randn(2, 1, 2).unbind()
    a.requires_grad_()
    loss = t_simcne_loss(a, b)
    loss.backward()
    assert loss == 0 and not a.grad.any()


def test_both_parts_of_a_gradient_are_added_before_rounding(views):
    """A trained pair attracts and repels nearly alike: each in bfloat16, little would be left."""
    a, b = (z.bfloat16() for z in views)
    leaves = [t.clone().requires_grad_() for t in (a, b)]
    t_simcne_loss(*leaves, 0.05).backward()
    wide = [t.double().requires_grad_() for t in (a, b)]
    t_simcne_loss(*wide, 0.05).backward()
    for leaf, truth in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=2**-8, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor(-0.5)])
def test_a_temperature_is_above_zero(views, temperature):
    with pytest.raises(ValueError, match="temperature"):
        t_simcne_loss(*views, temperature)
    with pytest.raises(ValueError, match="temperature"):
        TSimCNELoss(temperature)


def test_degrees_of_freedom_are_above_zero(views):
    with pytest.raises(ValueError, match="dof: expected a number above 0, got -1.0"):
        t_simcne_loss(*views, dof=-1)


def test_a_temperature_is_learned(views):
    module = TSimCNELoss(torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64)))
    assert dict(module.named_parameters())
    assert torch.autograd.gradcheck(lambda t: t_simcne_loss(*views, t), module.temperature)
