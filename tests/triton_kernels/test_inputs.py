"""Unusual inputs: zero and equal rows, NaN, strides, many views, odd scales; and what a launch costs in memory."""

from __future__ import annotations

import pytest
import serving
import torch
from accuracy import matmul_precision
from serving import kernels

import ssl_kernels
from ssl_kernels.backends import reference
from ssl_kernels.backends.gpu import launch

LOOSE = {"rtol": 2e-4, "atol": 1e-5}
KERNELS = ("prepare", "largest_factors", "sweep", "combine", "weigh", "finish", "sum_scale", "add_up")


def both(x, scale, period, *, multiplier=1.0, normalize=True):
    """Forward and backward of the kernels and of the reference, on the same upstream gradients."""
    results = []
    for backend in (kernels, reference):
        neg, pos, top = backend.self_lse(x, scale, multiplier, period, normalize)
        generator = torch.Generator().manual_seed(1)
        dneg = torch.rand(neg.shape, generator=generator).to(neg.dtype)
        dpos = -torch.rand(pos.shape, generator=generator).to(pos.dtype)
        args = dneg, dpos, x, scale, multiplier, period, normalize, neg, top
        dx, dscale = backend.self_lse_backward(*args)
        results.append((neg + top, pos + top, *dx, dscale))
    return results


def assert_alike(x, scale, period, **kwargs):
    for got, want in zip(*both(x, scale, period, **kwargs), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, equal_nan=True, **LOOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_zero_rows_are_finite(dtype, normalize):
    x = torch.randn(40, 16)
    x[3] = x[25] = 0
    x[7] = 1e-20  # below the least norm
    neg, pos, *dx, dscale = both([x.to(dtype)], torch.tensor(5.0), 20, normalize=normalize)[0]
    for t in (neg, pos, *dx, dscale):
        assert t.isfinite().all()
    if dtype == torch.float32:
        assert_alike([x], torch.tensor(5.0 if normalize else 0.5), 20, normalize=normalize)


def test_huge_and_tiny_rows():
    x = torch.randn(40, 16)
    x[::3] *= 1e25
    x[1::3] *= 1e-9
    got, _ = both([x], torch.tensor(5.0), 20)
    _, want = both([x.double()], torch.tensor(5.0, dtype=torch.float64), 20)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


def test_equal_rows():
    assert_alike([torch.randn(1, 16).expand(40, 16)], torch.tensor(10.0), 20)
    assert_alike([torch.randn(4, 16).repeat(10, 1)], torch.tensor(100.0), 20)


@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_comes_out(scale, bad):
    x = torch.randn(40, 16)
    x[7, 3] = bad
    neg, _, dx, dscale = both([x], torch.tensor(scale), 20)[0]
    assert neg[[0, 5, 39]].isnan().all()  # 7 and 27 are the same sample, each a stranger to all others
    assert dx.isnan().all()
    assert dscale.isnan()


def test_nan_scale_comes_out():
    for t in both([torch.randn(40, 16)], torch.tensor(float("nan")), 20)[0]:
        assert t.isnan().all()


def test_rows_with_strides_and_views_of_any_number():
    base = torch.randn(40, 80)
    assert_alike([base[:, 3:19], base[:20:2, 8:24], base.T[:16].T], torch.tensor(3.0), 45)
    many = list(torch.randn(launch.MAX_INPUTS + 3, 4, 16))
    assert_alike(many, torch.tensor(3.0), 4)
    assert_alike([base[:0, :16], base[:, :16], base[:0, :16]], torch.tensor(3.0), 20)


def test_single_row():
    neg, _, dx, dscale = both([torch.randn(1, 16)], torch.tensor(3.0), 1)[0]
    assert neg.item() == float("-inf")
    assert dx.count_nonzero() == 0
    assert dscale.item() == 0


@pytest.mark.parametrize(
    ("scale", "multiplier"),
    [
        (None, 5.0),
        (torch.tensor([5.0]), 1.0),
        (torch.tensor(0.1, dtype=torch.bfloat16), 30.0),
        (torch.tensor(0.0), 2.0),
    ],
    ids=["none", "one-element", "bf16", "zero"],
)
def test_scale_and_multiplier(scale, multiplier):
    x = [torch.randn(40, 16)]
    assert_alike(x, scale, 20, multiplier=multiplier)


def test_multiplier_is_not_rounded_to_float32():
    x = [torch.randn(40, 16, dtype=torch.float64)]
    for got, want in zip(*both(x, None, 20, multiplier=1 / 0.07), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_upstream_gradients_of_any_size_and_shape():
    x = [torch.randn(70, 16).half()]
    neg, _, top = kernels.self_lse(x, None, 10.0, 35, True)
    rest = x, None, 10.0, 35, True, neg, top
    whole = kernels.self_lse_backward(torch.ones(70), torch.zeros(1, 70), *rest)[0][0].double()
    for size in (2.0**-40, 2.0**12):
        dx = kernels.self_lse_backward(torch.tensor(size).expand(70), torch.zeros(()).expand(1, 70), *rest)[0][0]
        torch.testing.assert_close(dx.double(), (whole * size).half().double(), rtol=1e-3, atol=1e-7)
    nothing = kernels.self_lse_backward(torch.zeros(70), torch.zeros(1, 70), *rest)[0][0]
    assert nothing.count_nonzero() == 0


def test_coarse_is_high_for_one_call():
    x, dneg, dpos = [torch.randn(70, 16)], torch.rand(70), torch.rand(1, 70)

    def run(**options):
        neg, pos, top = kernels.self_lse(x, None, 10.0, 35, True, **options)
        (dx,), _ = kernels.self_lse_backward(dneg, dpos, x, None, 10.0, 35, True, neg, top, **options)
        return neg, pos, top, dx

    exact, coarse = run(), run(coarse=True)
    with matmul_precision("high"):
        high = run()
    assert all(map(torch.equal, coarse, high))
    assert not torch.equal(coarse[-1], exact[-1])


@pytest.mark.parametrize("temperature", [0.1, torch.tensor(0.02, requires_grad=True)], ids=["float", "learnt"])
def test_the_loss_itself(temperature):
    grads = []
    for backend in (serving.NAME, "reference"):
        torch.manual_seed(0)
        views = [torch.randn(20, 16, requires_grad=True) for _ in range(3)]
        loss = ssl_kernels.nt_xent_loss(*views[:2], temperature, more=views[2:], backend=backend)
        wanted = [*views, *([temperature] if isinstance(temperature, torch.Tensor) else [])]
        grads.append([loss, *torch.autograd.grad(loss, wanted)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "loss"),
    [
        (20, lambda x, y, scale, backend: ssl_kernels.clip_loss(x, y, scale, backend=backend)),
        (20, lambda x, y, scale, backend: ssl_kernels.siglip_loss(x, y, scale, -3.0, backend=backend)),
        (50, lambda x, y, scale, backend: ssl_kernels.info_nce_loss(x, y[:20], y[20:], 1 / scale, backend=backend)),
        (50, lambda x, y, scale, backend: ssl_kernels.info_nce_loss(x, y.detach()[:20], y.detach(), backend=backend)),
    ],
    ids=["clip", "siglip", "info-nce", "queue"],
)
def test_losses_of_two_sets(columns, loss):
    results = []
    for backend in (serving.NAME, "reference"):
        torch.manual_seed(0)
        x, y = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1).requires_grad_() for n in (20, columns))
        scale = torch.tensor(5.0, requires_grad=True)
        value = loss(x, y, scale, backend)
        results.append([value, *torch.autograd.grad(value, [x, y, scale], allow_unused=True)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_nothing_is_read_back(monkeypatch):
    """No ``.item()`` and no condition on a tensor: a launch never waits for the device, a CUDA graph can hold it."""

    def refuse(self, *args):
        raise AssertionError("a tensor was read on the host")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    serving.idle(monkeypatch, *KERNELS)
    x, scale = [torch.randn(70, 16)], torch.tensor(10.0)
    neg, pos, top = kernels.self_lse(x, scale, 1.0, 35, True)
    kernels.self_lse_backward(neg, pos, x, scale, 1.0, 35, True, neg, top)
    y, args = torch.randn(90, 16), (scale, 1.0, 5)
    neg, pos, top, neg_y, pos_y, top_y = kernels.cross_lse(*x, [y], *args, True, True)
    kernels.cross_lse_backward(neg, pos, neg_y, pos_y, *x, [y], *args, True, neg, top, neg_y, top_y, True, True)
    kernels.attend_lse(*x, [y], *args, False)
    kernels.pair_softplus(*x, y, scale, scale, 1.0, 5, True)
