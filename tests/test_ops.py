"""The waist itself: what ``self_lse`` means, entry by entry, and what ``torch.library`` must be able to do with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_kernels.backends.cpu import native
from ssl_kernels.ops import FLOATS, cross_lse, self_lse
from ssl_kernels.testing import poisoned_memory


def draw(*sizes: tuple[int, int], dtype=torch.float64, device="cpu", seed=0) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(n, d, dtype=dtype, device=device, generator=generator) for n, d in sizes]


def entry_by_entry(x: list[Tensor], factor: float, period: int, normalize: bool) -> tuple[list, list]:
    """The docstring of ``self_lse`` in plain Python."""
    z = [[float(v) for v in row] for t in x for row in t]
    if normalize:
        z = [[v / max(math.sqrt(sum(u * u for u in row)), 1e-12) for v in row] for row in z]
    rows = len(z)
    s = [[factor * sum(a * b for a, b in zip(z[i], z[j], strict=True)) for j in range(rows)] for i in range(rows)]
    neg = [[math.exp(s[i][j]) for j in range(rows) if (j - i) % period] for i in range(rows)]
    pos = [[s[i][(i + o * period) % rows] for i in range(rows)] for o in range(1, rows // period)]
    return [math.log(sum(row)) if row else -math.inf for row in neg], pos


def plain(*arguments, **keywords) -> tuple[Tensor, Tensor]:
    """``neg`` and ``pos`` without the shift by ``top``."""
    neg, pos, top = self_lse(*arguments, **keywords)
    assert not top.requires_grad
    return neg + top, pos + top


MEANINGS = [  # sizes of the inputs, period
    ([(4, 3), (4, 3)], 4),  # two views
    ([(8, 3)], 4),  # the same rows in one tensor
    ([(5, 2)] * 3, 5),  # three views
    ([(1, 6), (7, 6), (4, 6)], 4),  # pieces need not be views
    ([(6, 4)], 6),  # no twins: every other row is a negative
    ([(3, 4), (3, 4)], 6),
    ([(6, 4)], 1),  # all one sample: no negatives at all
    ([(0, 4), (6, 4)], 3),  # an empty piece
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("sizes", "period"), MEANINGS, ids=str)
def test_meaning(place, sizes, period, normalize):
    x = draw(*sizes, device=place.device)
    neg, pos = plain(x, multiplier=1.7, period=period, normalize=normalize, backend=place.backend)
    rows = sum(n for n, _ in sizes)
    assert neg.shape == (rows,) and pos.shape == (rows // period - 1, rows)
    expected_neg, expected_pos = entry_by_entry(x, 1.7, period, normalize)
    torch.testing.assert_close(neg.tolist(), expected_neg)
    torch.testing.assert_close(pos.tolist(), expected_pos)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scale_and_multiplier_multiply(place, dtype):
    x = draw((6, 4), dtype=dtype, device=place.device)
    scale = torch.tensor(2.5, device=place.device, dtype=dtype)
    both = self_lse(x, scale, 4.0, period=3, backend=place.backend)
    torch.testing.assert_close(both, self_lse(x, None, 10.0, period=3, backend=place.backend))
    torch.testing.assert_close(both, self_lse(x, scale.reshape(1, 1), 4.0, period=3, backend=place.backend))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("sizes", "period"), [m for m in MEANINGS if m[1] > 1], ids=str)
@pytest.mark.parametrize("factor", [0.0, 0.3, -2.0, 30.0])
def test_gradients(place, sizes, period, normalize, factor):
    x = [t.requires_grad_() for t in draw(*sizes, device=place.device)]
    scale = torch.tensor(factor, dtype=torch.float64, device=place.device, requires_grad=True)

    def call(scale, *x):
        return plain(x, scale, 0.7, period=period, normalize=normalize, backend=place.backend)

    assert torch.autograd.gradcheck(call, (scale, *x), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_coarse_is_high_for_one_call(place, dtype):
    """What torch.set_float32_matmul_precision says for all calls, of float32 alone, gradients included."""
    x, upstream = draw((600, 40), (1, 600), dtype=dtype, device=place.device)

    def run(**options: bool) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        neg, pos, top = self_lse([leaf], multiplier=20.0, period=300, backend=place.backend, **options)
        (neg @ upstream[0].to(neg) + pos.sum()).backward()
        return neg, pos, top, leaf.grad

    exact, coarse = run(), run(coarse=True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        high = run()
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(map(torch.equal, coarse, high))
    exactly = native.C.isa() in ("portable", "avx512") if place.backend == "cpu" else place.backend == "reference"
    if dtype != torch.float32 or exactly:
        assert all(map(torch.equal, coarse, exact))
    else:
        assert not torch.equal(coarse[-1], exact[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [64, 192])
def test_a_gradient_is_the_same_wherever_its_sums_are_gathered(isa, dtype, d):
    """In its own memory, where whole blocks of rows and panels of columns lie in every tensor, or elsewhere."""
    x, y = draw((192, d), (128, d), dtype=dtype)
    dneg = torch.randn(192, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def gradients(pieces: int) -> list[Tensor]:
        mine, other = x.clone().requires_grad_(), y.clone().requires_grad_()
        with poisoned_memory():
            neg, *_ = self_lse(mine.chunk(pieces), period=96, backend="cpu")
            (neg @ dneg).backward()
            rows, columns = cross_lse(mine, other.chunk(pieces), offset=None, columns=True, backend="cpu")
            (rows.neg @ dneg + columns.neg.sum()).backward()
        return [mine.grad, other.grad]

    at_once = gradients(1)
    for pieces in (2, 3):  # of 64 rows: of the second set, of the first
        assert all(map(torch.equal, gradients(pieces), at_once))


@pytest.mark.parametrize("which", ["neg", "pos"])
def test_a_gradient_of_one_output_alone(place, which):
    x = [t.requires_grad_() for t in draw((5, 4), (5, 4), device=place.device)]

    def call(*x):
        neg, pos = plain(x, multiplier=3.0, period=5, backend=place.backend)
        return neg if which == "neg" else pos

    assert torch.autograd.gradcheck(call, x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("sizes", "period"), [MEANINGS[0], MEANINGS[2], MEANINGS[4]], ids=str)
def test_opcheck(place, dtype, learned, sizes, period):
    x = draw(*sizes, dtype=dtype, device=place.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(2.0, dtype=wide, device=place.device) if learned else None
    forward = torch.ops.ssl_kernels.self_lse.default
    neg, pos, top = forward(x, scale, 1.5, period, True, place.backend)
    back = (torch.ones_like(neg), torch.ones_like(pos), x, scale, 1.5, period, True, neg, top, place.backend)
    torch.library.opcheck(torch.ops.ssl_kernels.self_lse_backward.default, back)
    for t in x if scale is None else [*x, scale]:
        t.requires_grad_()
    torch.library.opcheck(forward, (x, scale, 1.5, period, True, place.backend))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_results_are_wide(place, dtype):
    results = self_lse(draw((4, 3), (4, 3), dtype=dtype, device=place.device), period=4, backend=place.backend)
    assert {t.dtype for t in results} == {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("factor", [-300.0, 0.1, 50.0, 4000.0])
def test_the_larger_side_is_the_one_rounded(place, factor):
    x = draw((40, 8), (40, 8), dtype=torch.float32, device=place.device)
    neg, pos, top = self_lse(x, multiplier=factor, period=40, backend=place.backend)
    larger = torch.maximum(neg, pos[0])
    assert (larger.abs() <= torch.finfo(torch.float32).eps * (1 + top.abs())).all()
    wide = self_lse([t.double() for t in x], multiplier=factor, period=40, backend="reference")
    torch.testing.assert_close((neg - pos[0]).double(), wide[0] - wide[1][0], rtol=0, atol=1e-6 * (1 + abs(factor)))


X = draw((6, 3))
BAD = [
    ({"x": [], "period": 1}, ValueError, "x: expected at least one tensor, got none"),
    ({"x": [*X, X[0][0]]}, ValueError, r"x\[1\]: expected 2 dimensions \[N, D\], got shape \(3,\)"),
    ({"x": draw((4, 3), (4, 2))}, ValueError, r"x\[1\]: expected width 3 as x\[0\], got 2"),
    ({"x": [X[0].long()]}, TypeError, r"x\[0\]: expected float32, float64, bfloat16 or float16, got torch.int64"),
    ({"x": [*X, X[0].float()]}, ValueError, r"x\[1\]: expected dtype torch.float64 as x\[0\], got torch.float32"),
    ({"x": draw((0, 3))}, ValueError, "x: expected at least one row and one column, got 0 rows of width 3"),
    ({"x": draw((3, 0))}, ValueError, "x: expected at least one row and one column, got 3 rows of width 0"),
    ({"period": 4}, ValueError, "period: expected a positive divisor of the 6 rows, got 4"),
    ({"period": 0}, ValueError, "period: expected a positive divisor of the 6 rows, got 0"),
    ({"period": -3}, ValueError, "period: expected a positive divisor of the 6 rows, got -3"),
    ({"scale": torch.ones(2)}, ValueError, r"scale: expected one element, got shape \(2,\)"),
    ({"scale": torch.tensor(1)}, TypeError, "scale: expected a floating-point tensor, got torch.int64"),
    ({"scale": torch.ones((), device="meta")}, ValueError, "scale: expected device cpu as x, got meta"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:50] for *_, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        self_lse(**{"x": X, "period": 3} | arguments, backend="reference")


def test_shapes_are_known_without_data():
    x = [t.to("meta") for t in draw((4, 3), (4, 3), dtype=torch.bfloat16)]
    neg, pos, top = torch.ops.ssl_kernels.self_lse(x, None, 1.0, 4, True, "")
    assert (neg.shape, pos.shape, top.shape) == ((8,), (1, 8), (8,))
    assert {(t.dtype, t.device.type) for t in (neg, pos, top)} == {(torch.float32, "meta")}


def test_backward_in_the_autocast_region_is_as_precise(place):
    x = [t.requires_grad_() for t in draw((9, 8), (9, 8), dtype=torch.float32, device=place.device)]

    def gradient(*contexts):
        for t in x:
            t.grad = None
        neg, pos, _ = self_lse(x, multiplier=5.0, period=9, backend=place.backend)
        with torch.autocast(place.device, dtype=torch.bfloat16, enabled=bool(contexts)):
            (neg.sum() - pos.sum()).backward()
        return x[0].grad.clone()

    assert torch.equal(gradient("autocast"), gradient())
