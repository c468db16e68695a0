"""The sum of a softplus over all pairs: value and gradients against float64, as good as eager's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accuracy import BF16, F16, F32, F64, assert_no_worse, matmul_precision, product
from serving import NAME, draw, kernels

from ssl_kernels.backends import reference
from ssl_kernels.backends.gpu import launch
from ssl_kernels.testing import relative_error

NAMES = ("total", "dx", "dy", "dscale", "dbias")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    monkeypatch.setattr(launch, "PROGRAMS", 4)


def problem(dtype, rows, columns, width, scale=10.0, bias=-10.0, offset=0):
    x, y = (F.normalize(torch.randn(n, width, dtype=F64), dim=1).to(dtype) for n in (rows, columns))
    accumulate = F64 if dtype == F64 else F32
    return x, y, torch.tensor(scale, dtype=accumulate), torch.tensor(bias, dtype=accumulate), 1.0, offset, True


def exact(p):
    return reference.pair_softplus(*(t.double() if isinstance(t, torch.Tensor) else t for t in p))


def eager(p, precision="highest"):
    x, y, scale, bias = (t.clone().requires_grad_() for t in p[:4])
    s = product(x.dtype, precision)(x, y.T) * scale.to(x.dtype) + bias.to(x.dtype)
    sign = torch.ones_like(s)
    if p[5] is not None:
        sign[:, p[5] : p[5] + len(x)].fill_diagonal_(-1)
    total = F.softplus(sign * s).float().sum() if x.dtype in (F16, BF16) else F.softplus(sign * s).sum()
    total.backward()
    return total.detach(), x.grad, y.grad, scale.grad, bias.grad


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("width", [16, 320])
def test_the_value_alone_on_any_gpu(arch, width, monkeypatch):
    """Whose kernels have tiles of their own, which the buffer for their parts has to fit."""
    monkeypatch.setattr(launch, "architecture", lambda device: arch)
    for dtype in (F32, BF16):
        p = (*problem(dtype, 200, 170, width)[:-1], False)
        torch.testing.assert_close(kernels.pair_softplus(*p)[0].double(), exact(p)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(NAME != "cuda", reason="only the CUDA kernels keep the derivatives")
@pytest.mark.parametrize(("dtype", "width"), [(F16, 320), (F32, 200)])
@pytest.mark.parametrize("bias", [-10.0, -40.0])
def test_kept_derivatives_serve_both_sides_block_by_block(dtype, width, bias, monkeypatch):
    """Down to derivatives of 1e-13, which float16 holds in units of the largest."""
    from ssl_kernels.backends.cuda import wide

    p = problem(dtype, 300, 90, width, 10.0, bias, 5)
    _, dx, dy, *_ = kernels.pair_softplus(*p)
    monkeypatch.setattr(wide, "COPIES", 0)  # a block of rows at a time
    _, again_dx, again_dy, *_ = kernels.pair_softplus(*p)
    torch.testing.assert_close(again_dx, dx, rtol=0, atol=0)
    assert relative_error(again_dy, dy) < 1e-5
    _, true_dx, true_dy, *_ = exact(p)
    most = 1e-3 if dtype == F16 else 1e-5
    assert relative_error(dx, true_dx) < most and relative_error(dy, true_dy) < most


@pytest.mark.parametrize(
    ("p", "precision"),
    [
        *[((F32, 70, 90, width), "highest") for width in (3, 64, 200, 320)],
        *[((BF16, 70, 90, width), "highest") for width in (16, 200, 320)],
        ((BF16, 140, 298, 320), "highest"),
        ((F32, 140, 298, 200), "highest"),
        ((F16, 70, 90, 64), "highest"),
        ((F64, 34, 50, 48), "highest"),
        ((F32, 70, 90, 64), "high"),
        # at the start of training, nearly certain, and far out on both sides
        ((F32, 70, 90, 16, 10.0, 0.0, 20), "highest"),
        ((F32, 70, 90, 16, 100.0, -30.0, None), "highest"),
        ((BF16, 130, 70, 16, -30.0, 50.0, None), "highest"),
        ((F64, 34, 50, 16, 100.0, -30.0), "highest"),
        ((F32, 1, 1, 16), "highest"),
    ],
    ids=lambda p: p if isinstance(p, str) else "-".join(map(str, p)).removeprefix("torch."),
)
def test_no_worse_than_eager(p, precision):
    p = problem(*p)
    with matmul_precision(precision):
        got = kernels.pair_softplus(*p)
    want, peer = exact(p), eager(p, precision)
    eps = torch.finfo(p[0].dtype).eps * (max(p[2].abs(), p[3].abs()).item() if p[0].dtype == F64 else 1)
    for name, ours, theirs, true in zip(NAMES, got, peer, want, strict=True):
        # two units in the last place of what a number is the sum of
        whole = true.norm() if true.dim() else want[0].abs() + want[4].abs()
        assert_no_worse(name, ours, theirs, true, 4 * eps * whole.item())
        assert ours.dtype == (F64 if p[0].dtype == F64 else F32)


def test_digits_of_nearly_certain_pairs():
    """Each term is about e^-20: 1 + e would keep none of it. What multiplies rows keeps its digits too."""
    p = problem(F32, 40, 50, 16, 0.5, -20.0, None)
    (total, dx, dy, _, dbias), want = kernels.pair_softplus(*p), exact(p)
    for ours, true in ((total, want[0]), (dbias, want[4])):
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=0)
    for ours, true in ((dx, want[1]), (dy, want[2])):
        assert relative_error(ours, true) < 1e-5


def test_value_alone():
    p = problem(F32, 70, 300, 16)
    total, dx, dy, dscale, dbias = kernels.pair_softplus(*p[:6], False)
    assert dx.numel() == dy.numel() == 0
    assert dscale == dbias == 0
    torch.testing.assert_close(total, kernels.pair_softplus(*p)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [None, torch.tensor([-3.0])], ids=["none", "one-element"])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.0), torch.tensor(2.0, dtype=BF16)], ids=str)
def test_scale_multiplier_and_bias(scale, bias):
    base = torch.randn(60, 40)
    args = base[::2, 3:19], base.T[:, :16], scale, bias, 0.7, 9, True
    for ours, true in zip(kernels.pair_softplus(*args), reference.pair_softplus(*args), strict=True):
        torch.testing.assert_close(ours, true, rtol=2e-4, atol=1e-5)


def test_zero_huge_and_nan_rows():
    x, y, *rest = problem(F32, 40, 50, 16)
    x[3] = y[4] = 0
    y[5] *= 1e6
    y[6] *= 1e-12
    p = x, y, *rest
    for ours, true in zip(kernels.pair_softplus(*p), exact(p), strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-4)
    y[7, 3] = float("nan")
    total, dx, _, dscale, dbias = kernels.pair_softplus(*p)
    for t in (total, dx, dscale, dbias):
        assert t.isnan().all()


def test_order_of_programs_changes_no_bit(monkeypatch):
    p = problem(BF16, 140, 160, 16)
    first = kernels.pair_softplus(*p)
    draw(1)
    for a, b in zip(first, kernels.pair_softplus(*p), strict=True):
        assert torch.equal(a, b)
