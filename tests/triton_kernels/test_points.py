"""Points: log-sum-exp by distances, value and gradients against float64, and nearest neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from accuracy import BF16, F16, F32, F64
from serving import draw, kernels
from torch import Tensor

from ssl_kernels.backends import reference


def relative_error(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def evaluate(serve, x: list[Tensor], scale: float, dof: float, period: int) -> list[Tensor]:
    wide = F64 if x[0].dtype == F64 else F32
    args = x, torch.tensor(scale, dtype=wide), 0.5, dof, period
    neg, low = serve.student_lse(*args)
    dneg = torch.linspace(1, 2, len(neg), dtype=wide)
    dx, dscale = serve.student_lse_backward(dneg, *args, neg, low)
    return [neg, torch.cat(dx), dscale]


SIZES = [  # rows of each input, width, period
    ((3, 2), 2, 5),  # one tile, no twins
    ((35, 35), 2, 35),  # ragged against the tile
    ((64, 64), 3, 64),  # tiles to the full
    ((50, 50, 50), 5, 50),  # three views, a width that is not unrolled
    ((10, 60), 20, 7),  # a period shorter than a tile
    ((5, 1), 1, 1),  # no negatives at all
]


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("dof", [1.0, 3.0, math.inf])
@pytest.mark.parametrize(("rows", "width", "period"), SIZES, ids=str)
def test_value_and_gradients(dtype, dof, rows, width, period):
    x = [3 * torch.randn(n, width, dtype=F64).to(dtype) for n in rows]
    got = evaluate(kernels, x, 1.0, dof, period)
    truth = evaluate(reference, [t.double() for t in x], 1.0, dof, period)
    eager = evaluate(reference, x, 1.0, dof, period)
    for ours, exact, theirs in zip(got, truth, eager, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if period == 1:
            assert torch.equal(ours.double(), exact)
        else:
            rounding = 50 * torch.finfo(F64 if dtype == F64 else F32).eps
            assert relative_error(ours, exact) <= max(2 * relative_error(theirs, exact), rounding)


@pytest.mark.parametrize("dof", [1.0, 1e6, math.inf])
@pytest.mark.parametrize(("spread", "offset", "scale"), [(1, 100, 1.0), (1e3, 0, 1.0), (1, 0, 0.0), (3, 0, 100.0)])
def test_points_close_together_and_far_apart(dof, spread, offset, scale):
    x = [(spread * torch.randn(40, 2) + offset) for _ in range(2)]
    got = evaluate(kernels, x, scale, dof, 40)
    truth = evaluate(reference, [t.double() for t in x], scale, dof, 40)
    for ours, exact in zip(got, truth, strict=True):
        assert relative_error(ours, exact) < 1e-5


def test_a_negative_scale_gives_nan():
    neg, _ = kernels.student_lse([torch.randn(8, 2)], torch.tensor(-1.0), 1.0, 1.0, 4)
    assert neg.isnan().all()


def test_the_order_of_programs_does_not_matter():
    x, results = [torch.randn(70, 2), torch.randn(70, 2)], []
    for seed in (0, 1, 2):
        draw(seed)
        results.append(evaluate(kernels, x, 1.0, 3.0, 70))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("m", "k", "width", "skip"), [(5, 7, 2, None), (70, 130, 20, None), (64, 64, 3, 0), (3, 200, 70, -1), (1, 1, 4, 0)]
)
def test_nearest(dtype, normalize, m, k, width, skip):
    x, y = torch.randn(m, width).to(dtype), torch.randn(k, width).to(dtype)
    y[k // 2] = y[0]  # of equals the first
    index = kernels.nearest(x, y, skip, normalize)
    assert torch.equal(index, reference.nearest(x.double(), y.double(), skip, normalize))


def test_the_nearest_of_nothing_but_nan_is_a_row():
    x = torch.full((70, 20), math.nan)
    index = kernels.nearest(x, x, 0, True)
    assert ((index >= 0) & (index < 70)).all()
