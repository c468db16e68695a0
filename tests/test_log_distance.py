"""``log_distance``: what it means, its digits where rows nearly coincide, and where a pair's gradients cancel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels.ops import FLOATS, log_distance, nearest
from ssl_kernels.testing import poisoned_memory, relative_error, saved_bytes

NARROW = [dtype for dtype in FLOATS if dtype != torch.float64]


def draw(k: int, d: int, dtype=torch.float64, device="cpu", seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, d, dtype=torch.float64, generator=generator).to(device, dtype)


def pointers(n: int, k: int, device="cpu", seed=0) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed)).to(device)


def plainly(x: Tensor, index: Tensor, *, first: int = 0, p: float = 2.0, eps: float = 1e-8) -> Tensor:
    z = F.normalize(x, dim=1)
    return (F.pairwise_distance(z[first : first + len(index)], z[index], p, eps) + eps).log()


def with_gradient(call, x: Tensor, *rest, **options) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = call(leaf, *rest, **options)
    weights = torch.linspace(0.5, 2, len(value), dtype=torch.float64).to(value)
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaf)[0]


# Ragged against vectors of 2 to 16 numbers; (n, k, first, d): rows [first, first + n) of k are compared.
SHAPES = [(5, 5, 0, 3), (1, 4, 3, 2), (64, 64, 0, 128), (40, 100, 60, 77), (300, 300, 0, 33), (3, 9, 2, 5000)]


@pytest.mark.parametrize("p", [2.0, 1.0, 3.5, 0.7, math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "k", "first", "d"), SHAPES)
def test_meaning(place, dtype, n, k, first, d, p):
    x, index = draw(k, d, dtype, place.device), pointers(n, k, place.device)
    if p < 1:  # where both rows are one and the same the slope has no bound
        index = (torch.arange(first, first + n, device=place.device) + 1) % k
    with poisoned_memory():
        value, gradient = with_gradient(log_distance, x, index, first=first, p=p, eps=1e-3, backend=place.backend)
    expected, expected_gradient = with_gradient(plainly, x.double(), index, first=first, p=p, eps=1e-3)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype and gradient.is_contiguous()
    torch.testing.assert_close(value.double(), expected, rtol=4 * torch.finfo(value.dtype).eps, atol=1e-6)
    assert relative_error(gradient, expected_gradient) < 4 * torch.finfo(dtype).eps + 1e-12


@pytest.mark.parametrize("p", [2.0, 1.5])
def test_gradients(place, p):
    x, index = draw(6, 3, device=place.device).requires_grad_(), torch.tensor([1, 0, 0, 5], device=place.device)
    assert torch.autograd.gradcheck(lambda x: log_distance(x, index, first=2, p=p, backend=place.backend), x)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_rows_of_one_direction_keep_the_digits_of_what_is_between_them(place, dtype):
    # Row 1 is a multiple of row 0 by a power of two, so in any dtype they differ by nothing but eps. What a rounding to
    # float32 puts there instead is ten times as large, and its inverse would be the gradient.
    x, index = draw(8, 24, dtype, place.device), torch.tensor([1, 0, 3, 2, 5, 4, 7, 6], device=place.device)
    x[1] = 4 * x[0]
    x[3] = 3 * x[2].float()  # all but one direction: rounded
    value, gradient = with_gradient(log_distance, x, index, backend=place.backend)
    expected, expected_gradient = with_gradient(plainly, x.double(), index)
    assert value[0].item() == pytest.approx(math.log(1e-8 * (math.sqrt(24) + 1)), rel=1e-6)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    assert relative_error(gradient[2:], expected_gradient[2:]) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_that_are_the_same_move_nobody(place, dtype):
    x = draw(1, 40, dtype, place.device).repeat(6, 1)
    x[4:] = 0
    index = torch.tensor([0, 2, 1, 3, 5, 4], device=place.device)
    value, gradient = with_gradient(lambda *a, **o: log_distance(*a, **o).sum(0, keepdim=True), x, index)
    assert value.isfinite().all() and not gradient.any()


def test_rows_at_no_distance_have_no_gradient(place):
    # eps is what the difference takes away
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]], device=place.device)
    _, gradient = with_gradient(log_distance, x, torch.tensor([0, 0], device=place.device), backend=place.backend)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("d", [1, 7, 16, 100])
def test_every_instruction_set(isa, dtype, d):
    x, index = draw(50, d, dtype), pointers(50, 50)
    expected = with_gradient(plainly, x.double(), index, eps=1e-3)
    value, gradient = with_gradient(log_distance, x, index, eps=1e-3, backend="cpu")
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-6, atol=1e-6)
    assert (gradient - expected[1]).norm() <= 4 * torch.finfo(dtype).eps * max(1, expected[1].norm())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_any_number_of_threads(dtype):
    x, index, threads, found = draw(900, 200, dtype), pointers(900, 30), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(with_gradient(log_distance, x, index))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(t, first) for pair in found for t, first in zip(pair, found[0], strict=True))


def test_rows_of_any_stride(place):
    x, index = draw(20, 9, torch.float32, place.device), pointers(20, 20, place.device)
    expected = with_gradient(log_distance, x, index, backend=place.backend)
    wide = torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(1).requires_grad_()
    value = log_distance(wide[:, ::2], torch.stack([index, index], 1)[:, 0], backend=place.backend)
    torch.testing.assert_close(value, expected[0])
    value.sum().backward()  # whose gradient is one number, expanded
    ones = x.clone().requires_grad_()
    log_distance(ones, index, backend=place.backend).sum().backward()
    torch.testing.assert_close(wide.grad[:, ::2], ones.grad)


def test_keeps_two_numbers_a_row():
    inputs = {"x": draw(1000, 64, torch.float32), "index": nearest(draw(1000, 64), draw(1000, 64), skip=0)}
    assert saved_bytes(log_distance, inputs, ["x"]) == 2 * 1000 * 8


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [2.0, 3.0])
def test_opcheck(place, dtype, p):
    x, index = draw(7, 5, dtype, place.device), pointers(4, 7, place.device)
    forward, rest = torch.ops.ssl_kernels.log_distance.default, (2, p, 1e-8, place.backend)
    value, norm, distance = forward(x, index, *rest)
    back = torch.ones_like(value), x, index, norm, distance, *rest
    torch.library.opcheck(torch.ops.ssl_kernels.log_distance_backward.default, back)
    torch.library.opcheck(forward, (x.requires_grad_(), index, *rest))


def test_a_second_derivative_raises(place):
    x = draw(5, 3, device=place.device).requires_grad_()
    value = log_distance(x, pointers(5, 5, place.device), backend=place.backend).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        gradient.sum().backward()


X, INDEX = torch.zeros(4, 3), torch.tensor([1, 0, 3])
BAD = [
    ({"x": X[0]}, ValueError, r"x: expected 2 dimensions \[N, D\], got shape \(3,\)"),
    ({"x": X[:0]}, ValueError, r"x: expected at least one row and one column, got shape \(0, 3\)"),
    ({"x": X.long()}, TypeError, r"x: expected float32, float64, bfloat16 or float16, got torch.int64"),
    ({"index": INDEX.int()}, TypeError, "index: expected int64, got torch.int32"),
    ({"index": INDEX[None]}, ValueError, r"index: expected \[N\] on cpu, got shape \(1, 3\) on cpu"),
    ({"index": INDEX.to("meta")}, ValueError, r"index: expected \[N\] on cpu, got shape \(3,\) on meta"),
    ({"index": INDEX + 1}, ValueError, "index: expected 0 to 3, got 4"),
    ({"index": INDEX - 1}, ValueError, "index: expected 0 to 3, got -1"),
    ({"first": 2}, ValueError, "first: expected 0 to 1 for 3 of 4 rows, got 2"),
    ({"first": -1}, ValueError, "first: expected 0 to 1 for 3 of 4 rows, got -1"),
    ({"p": 0.0}, ValueError, "p: expected a number above 0, got 0.0"),
    ({"eps": math.nan}, ValueError, "eps: expected a number above 0, got nan"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of .*, got 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        log_distance(**{"x": X, "index": INDEX} | arguments)
