"""Cosines of paired rows, and the losses made of them, beyond what the table of losses asks of all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import (
    BYOLLoss,
    NegativeCosineSimilarity,
    SimSiamLoss,
    backends,
    byol_loss,
    negative_cosine_reference,
    negative_cosine_similarity,
    simsiam_loss,
)
from ssl_kernels.ops import FLOATS, cosine

needs_cpu = pytest.mark.skipif(backends.status()["cpu"] is not None, reason=f"cpu: {backends.status()['cpu']}")


def draw(*shape: int, dtype=torch.float64, device="cpu", seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


# ---------------------------------------------------------------------------------------------------------- the op
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (64, 128), (300, 77), (3, 5000)])
def test_values_are_those_of_cosine_similarity(place, dtype, n, d):
    x, y = (draw(n, d, dtype=dtype, device=place.device, seed=k) for k in (0, 1))
    x[0] *= 1e-6
    value = cosine(x, y, backend=place.backend)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = F.cosine_similarity(x.double(), y.double())
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=8 * torch.finfo(value.dtype).eps)


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 10.0])
def test_each_norm_is_held_at_eps_by_itself(place, eps):
    x, y = draw(6, 4, device=place.device), draw(6, 4, device=place.device, seed=1)
    x[0], y[1] = 0, 0
    x[2] *= eps / 10
    y[3] *= eps / 10
    expected = F.cosine_similarity(x, y, eps=eps)
    torch.testing.assert_close(cosine(x, y, eps, backend=place.backend), expected)
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    grads = torch.autograd.grad(cosine(*leaves, eps, backend=place.backend).sum(), leaves)
    # not by cosine_similarity, which differentiates the norm where it is held
    plain = (F.normalize(leaves[0], dim=1, eps=eps) * F.normalize(leaves[1], dim=1, eps=eps)).sum()
    for got, want in zip(grads, torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 2), (4, 17)])
def test_gradients(place, n, d):
    x, y = (draw(n, d, device=place.device, seed=k).requires_grad_() for k in (0, 1))
    weights = draw(n, device=place.device, seed=2)
    call = lambda x, y: cosine(x, y, backend=place.backend) * weights  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, y))
    assert torch.autograd.gradcheck(lambda x: call(x, y.detach()), x)
    assert torch.autograd.gradcheck(lambda y: call(x.detach(), y), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms_whose_product_leaves_the_range(place, dtype):
    big = 1e18 if dtype == torch.float32 else 1e150
    x, y = draw(4, 8, dtype=dtype, device=place.device), draw(4, 8, dtype=dtype, device=place.device, seed=1)
    expected = cosine(x, y, backend=place.backend)
    torch.testing.assert_close(cosine(big * x, big * y, backend=place.backend), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(place, dtype):
    x, y = (draw(5, 7, dtype=dtype, device=place.device, seed=k) for k in (0, 1))
    forward = torch.ops.ssl_kernels.cosine.default
    kept = forward(x, y, 1e-8, place.backend)
    for want in ((True, True), (True, False)):
        back = torch.ones_like(kept[0]), x, y, *kept, 1e-8, *want, place.backend
        torch.library.opcheck(torch.ops.ssl_kernels.cosine_backward.default, back)
    torch.library.opcheck(forward, (x.requires_grad_(), y.requires_grad_(), 1e-8, place.backend))


def test_keeps_three_numbers_a_row():
    x, y = torch.randn(1000, 64, requires_grad=True), torch.randn(1000, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cosine(x, y)
    assert sum(t.numel() for t in kept if t.data_ptr() not in (x.data_ptr(), y.data_ptr())) == 3000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(3, 2)), ValueError, r"y: expected shape \(2, 3\) as x, got \(3, 2\)"),
        ((torch.zeros(3), torch.zeros(3)), ValueError, r"x: expected 2 dimensions \[N, D\], got shape \(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).double()), ValueError, "y: expected dtype torch.float32 as x, got .*64"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, device="meta")), ValueError, "y: expected device cpu as x, got meta"),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3).long()), TypeError, "x: expected float32, .*, got torch.int64"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 0.0), ValueError, "eps: expected a positive number, got 0.0"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), float("nan")), ValueError, "eps: expected a positive number, got nan"),
    ],
)
def test_bad_arguments_of_the_op(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        cosine(*arguments)


# ------------------------------------------------------------------------------------------------------- the losses
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((4, 5), 1), ((4, 5), 0), ((4, 5), -1), ((5,), 0), ((2, 3, 5), 1), ((2, 3, 5), -3), ((2, 3, 4, 5), 2)],
)
def test_any_dimension(place, shape, dim):
    x0, x1 = (draw(*shape, device=place.device, seed=k).requires_grad_() for k in (0, 1))
    loss = negative_cosine_similarity(x0, x1, dim, backend=place.backend)
    expected = -F.cosine_similarity(x0, x1, dim).mean()
    torch.testing.assert_close(loss, expected)
    for got, want in zip(*(torch.autograd.grad(v, (x0, x1)) for v in (loss, expected)), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(negative_cosine_reference(x0, x1, dim), expected)


def test_broadcasting(place):
    x0, x1 = draw(4, 1, 5, device=place.device), draw(3, 5, device=place.device, seed=1)
    loss = NegativeCosineSimilarity(dim=-1, backend=place.backend)(x0, x1)
    torch.testing.assert_close(loss, -F.cosine_similarity(x0, x1, -1).mean())


def test_only_predictions_get_a_gradient(place):
    for loss, module in ((byol_loss, BYOLLoss), (simsiam_loss, SimSiamLoss)):
        p, z = (draw(6, 4, device=place.device, seed=k).requires_grad_() for k in (0, 1))
        value = loss(p, z, backend=place.backend)
        assert torch.equal(module(backend=place.backend)(p, z), value)
        value.backward()
        assert p.grad is not None and z.grad is None


def test_how_the_three_hang_together(place):
    p, z = draw(9, 4, device=place.device), draw(9, 4, device=place.device, seed=1)
    on = {"backend": place.backend}
    negative = negative_cosine_similarity(p, z, **on)
    torch.testing.assert_close(byol_loss(p, z, **on), 2 + 2 * negative)
    torch.testing.assert_close(simsiam_loss(p, z, **on), negative)
    squared = (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(byol_loss(p, z, **on), squared)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.zeros(2, 3), torch.zeros(4, 3)),
            ValueError,
            r"x1: expected a shape that broadcasts with \(2, 3\) as x0",
        ),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 2), ValueError, r"dim: expected -2 to 1 for shape \(2, 3\), got 2"),
        ((torch.zeros(0, 3), torch.zeros(0, 3)), ValueError, "x0: expected at least one row and one column"),
        (([1.0], torch.zeros(2, 3)), TypeError, "x0: expected a tensor, got list"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).int()), TypeError, "x1: expected float32, .*, got torch.int32"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).half()), ValueError, "x1: expected dtype torch.float32 as x0, got .*16"),
    ],
)
def test_bad_arguments_of_the_loss(arguments, error, message):
    for loss in (negative_cosine_similarity, negative_cosine_reference):
        with pytest.raises(error, match=f"^{message}"):
            loss(*arguments)


# --------------------------------------------------------------------------------------------------- instruction sets
@needs_cpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_instruction_set_gives_the_same_to_rounding(dtype):
    from ssl_kernels._native import load

    native, _ = load()
    used = native.isa()
    x, y = (draw(400, 77, dtype=dtype, seed=k).requires_grad_() for k in (0, 1))
    try:
        results = []
        for isa in native.isas():
            native.use_isa(isa)
            value = cosine(x, y, backend="cpu")
            results.append((value, *torch.autograd.grad(value.sum(), (x, y))))
    finally:
        native.use_isa(used)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b)
