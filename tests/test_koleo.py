"""KoLeo, alignment and uniformity: what the table of cases does not say of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import (
    AlignmentLoss,
    KoLeoLoss,
    UniformityLoss,
    alignment_loss,
    koleo_loss,
    koleo_reference,
    uniformity_loss,
)
from ssl_kernels.testing import Case, check, evaluate, relative_error, widened


def test_koleo_of_rows_worked_out_by_hand():
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    # all pairs at right angles or opposite: everybody's nearest is at a distance of sqrt 2
    torch.testing.assert_close(koleo_loss(x), torch.tensor(-0.5 * math.log(2), dtype=torch.float64))


def test_an_opposite_pair_are_neighbours():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(koleo_loss(x), torch.tensor(-math.log(2), dtype=torch.float64))


def test_a_single_row_is_its_own_neighbour():
    assert koleo_loss(torch.ones(1, 1)).item() == pytest.approx(-math.log(2e-8), abs=1e-5)


def test_two_rows_of_one_direction_among_400(place):
    # What 100,000 random cases found: the rows' difference, rounded to float32, had a gradient of 89,470 where the
    # true one, in which the pair's two parts cancel, is of 744.
    case = Case("koleo", place.backend, place.device, torch.float16, 400, 2, 1.0, trained=True)
    inputs = case.inputs(seed=0)
    check(case.fused, case, inputs, {"x"})
    truth, fused = evaluate(koleo_reference, widened(inputs), {"x"}), evaluate(case.fused, inputs, {"x"})
    assert relative_error(fused["x"], truth["x"]) < 2e-3


def test_other_norms(generator):
    x = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    z = F.normalize(x, dim=1)
    index = (z @ z.T).fill_diagonal_(-2).argmax(1)
    for p in (1, 3, math.inf):
        expected = -torch.linalg.vector_norm(z - z[index] + 1e-8, ord=p, dim=1).add(1e-8).log().mean()
        torch.testing.assert_close(KoLeoLoss(p=p)(x), expected)


def test_the_same_bits_for_any_number_of_threads(generator):
    x, threads, results = torch.randn(3000, 32, generator=generator), torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            koleo_loss(leaf).backward()
            results.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, results[0]) for other in results)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"p": 0}, "p: .* above 0, got 0"), ({"eps": -1}, "eps: .* got -1")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        koleo_loss(torch.randn(4, 3), **arguments)
    with pytest.raises(ValueError, match=r"x: expected at least one row and one column, got shape \(0, 3\)"):
        koleo_loss(torch.randn(0, 3))


@pytest.mark.parametrize("t", [0.5, 2.0, -1.0])
def test_uniformity_is_that_of_all_distances(t, generator):
    z = F.normalize(torch.randn(30, 5, dtype=torch.float64, generator=generator), dim=1)
    expected = torch.pdist(z).square().mul(-t).exp().mean().log()
    torch.testing.assert_close(UniformityLoss(t)(z), expected)
    torch.testing.assert_close(uniformity_loss(3 * z, t), expected)  # normalised here


def test_uniformity_of_one_row_is_refused():
    with pytest.raises(ValueError, match=r"x: expected at least two rows and one column, got shape \(1, 3\)"):
        uniformity_loss(torch.randn(1, 3))
    with pytest.raises(ValueError, match="t: expected a number, got nan"):
        uniformity_loss(torch.randn(4, 3), math.nan)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment(alpha, generator):
    x, y = torch.randn(2, 12, 4, dtype=torch.float64, generator=generator)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).norm(dim=1).pow(alpha).mean()
    c, d = x.clone().requires_grad_(), y.clone().requires_grad_()
    loss = AlignmentLoss(alpha)(c, d)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, [c, d]), torch.autograd.grad(expected, [a, b]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_views_that_agree_keep_the_digits_of_their_distance(generator):
    x = torch.randn(100, 16, dtype=torch.float64, generator=generator)
    y = x + 1e-4 * torch.randn(100, 16, dtype=torch.float64, generator=generator)
    x, y = x.float(), y.float()
    truth = alignment_loss(x.double(), y.double())
    assert abs(alignment_loss(x, y) / truth - 1) < 2e-3
    cosines = 2 - 2 * (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(1).mean()
    assert abs(cosines / truth - 1) > 2e-3


def test_alignment_of_the_same_rows_has_a_gradient_of_zero():
    x = torch.randn(5, 3).requires_grad_()
    for alpha in (1.0, 2.0):
        loss = alignment_loss(x, x.detach().clone(), alpha)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss == 0 and not gradient.any()


def test_alignment_checks_its_views():
    with pytest.raises(ValueError, match=r"y: expected shape \(4, 3\) as x, got \(5, 3\)"):
        alignment_loss(torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match="alpha: expected a number above 0, got 0"):
        alignment_loss(torch.randn(4, 3), torch.randn(4, 3), 0)
