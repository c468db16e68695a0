"""``student_lse``: its meaning entry by entry, and the precision of points close together, far away, and far apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_kernels.ops import FLOATS, student_lse
from ssl_kernels.testing import relative_error

KERNELS = [1.0, 3.0, math.inf]


def draw(*sizes: tuple[int, int], dtype=torch.float64, device="cpu", seed=0) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(n, d, dtype=dtype, device=device, generator=generator) for n, d in sizes]


def entry_by_entry(x: list[Tensor], factor: float, dof: float, period: int) -> list[float]:
    """The docstring of ``student_lse`` in plain Python."""
    z = [[float(v) for v in row] for t in x for row in t]
    neg = []
    for i, a in enumerate(z):
        terms = []
        for j, b in enumerate(z):
            d2 = sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
            s = -factor * d2 if math.isinf(dof) else -0.5 * (dof + 1) * math.log1p(2 * factor * d2 / dof)
            terms += [math.exp(s)] if (j - i) % period else []
        neg.append(math.log(math.fsum(terms)) if terms else -math.inf)
    return neg


def evaluate(x: list[Tensor], backend: str, scale: float = 0.5, **keywords) -> dict[str, Tensor]:
    """neg, and the gradients of its weighted sum by the points and by the scale."""
    x = [t.detach().clone().requires_grad_() for t in x]
    wide = torch.float64 if x[0].dtype == torch.float64 else torch.float32
    s = torch.tensor(scale, dtype=wide, device=x[0].device, requires_grad=True)
    neg = student_lse(x, s, backend=backend, **keywords)
    weight = torch.linspace(1, 2, len(neg), dtype=wide, device=neg.device)
    (neg * weight).sum().backward()
    return {"neg": neg.detach(), "x": torch.cat([t.grad for t in x]), "scale": s.grad}


def oracle(x: list[Tensor], **keywords) -> dict[str, Tensor]:
    return evaluate([t.double() for t in x], "reference", **keywords)


MEANINGS = [  # sizes of the inputs, period
    ([(4, 2), (4, 2)], 4),  # two views
    ([(5, 3)] * 3, 5),  # three
    ([(1, 6), (7, 6), (4, 6)], 4),  # pieces need not be views
    ([(6, 1)], 6),  # no twins: every other row is a negative
    ([(6, 4)], 1),  # all one sample: no negatives at all
    ([(0, 4), (6, 4)], 3),  # an empty piece
]


@pytest.mark.parametrize("dof", [*KERNELS, 0.5, 1e6])
@pytest.mark.parametrize(("sizes", "period"), MEANINGS, ids=str)
def test_meaning(place, sizes, period, dof):
    x = draw(*sizes, device=place.device)
    neg = student_lse(x, multiplier=1.7, dof=dof, period=period, backend=place.backend)
    torch.testing.assert_close(neg.tolist(), entry_by_entry(x, 1.7, dof, period))


@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize("factor", [0.0, 0.3, 200.0])
@pytest.mark.parametrize(("sizes", "period"), [m for m in MEANINGS if m[1] > 1], ids=str)
def test_gradients(place, sizes, period, factor, dof):
    x = [t.requires_grad_() for t in draw(*sizes, device=place.device)]
    scale = torch.tensor(factor, dtype=torch.float64, device=place.device, requires_grad=factor > 0)

    def call(scale, *x):
        return student_lse(x, scale, 0.7, dof=dof, period=period, backend=place.backend)

    assert torch.autograd.gradcheck(call, (scale, *x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dof", KERNELS)
def test_a_scale_of_zero_has_a_gradient(place, dof):
    x = draw((5, 2), (5, 2), device=place.device)
    got, expected = (evaluate(x, b, scale=0.0, dof=dof, period=5) for b in (place.backend, "reference"))
    torch.testing.assert_close(got["neg"], torch.full_like(got["neg"], math.log(8)))
    assert not got["x"].any()
    torch.testing.assert_close(got["scale"], expected["scale"])


# Every width class of the kernels, ragged against vectors, panels and blocks.
SHAPES = [(1, 2), (3, 2), (17, 2), (65, 2), (200, 2), (700, 2), (65, 1), (40, 3), (33, 16), (70, 33), (20, 2048)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_value_and_gradients(place, dtype, dof, n, d):
    x = [3 / math.sqrt(d) * t for t in draw((n, d), (n, d), dtype=torch.float64, device=place.device)]
    x = [t.to(dtype) for t in x]
    got, truth = evaluate(x, place.backend, dof=dof, period=n), oracle(x, dof=dof, period=n)
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for name, value in got.items():
        if n == 1:
            assert torch.equal(value.double(), truth[name])
        else:
            own = max(wide, torch.finfo(dtype).eps) if name == "x" else wide
            error = relative_error(value, truth[name])
            if name == "neg":  # the logarithm of a sum of many may be nearly 0, what it is made of is not
                error *= min(1.0, truth[name].abs().mean().item())
            assert error < 20 * own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dof", [1.0, 3.0, 1e6, math.inf])
@pytest.mark.parametrize("scale", [0.01, 0.5, 300.0])
def test_every_instruction_set(isa, dtype, dof, scale):
    x = draw((90, 2), (90, 2), dtype=dtype)
    got, truth = evaluate(x, "cpu", scale=scale, dof=dof, period=90), oracle(x, scale=scale, dof=dof, period=90)
    for name, value in got.items():
        assert relative_error(value, truth[name]) < 50 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (10, 0), (100, 0), (1, 100), (10, 100), (1e-3, 1)])
def test_close_points_keep_the_digits_that_a_matrix_product_loses(place, spread, offset, dof):
    x = [spread * t + offset for t in draw((300, 2), (300, 2), dtype=torch.float32, device=place.device)]
    got, truth = (f(x, dof=dof, period=300) for f in (lambda x, **k: evaluate(x, place.backend, **k), oracle))
    assert relative_error(got["neg"], truth["neg"]) < 3e-7
    assert relative_error(got["x"], truth["x"]) < 3e-6
    if (spread, offset, dof) == (1, 100, 1.0):  # what was gained
        z = torch.cat(x)
        d2 = torch.cdist(z, z, compute_mode="use_mm_for_euclid_dist").square()
        same = (torch.arange(600)[:, None] - torch.arange(600)[None, :]) % 300 == 0
        neg = (1 / (1 + d2)).masked_fill(same.to(z.device), 0).sum(1).log()
        assert relative_error(neg, truth["neg"]) > 1e-5


@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize("spread", [1e2, 1e4, 1e6])
def test_points_far_apart_do_not_underflow(place, spread, dof):
    x = [spread * t for t in draw((50, 2), (50, 2), dtype=torch.float32, device=place.device)]
    got, truth = evaluate(x, place.backend, dof=dof, period=50), oracle(x, dof=dof, period=50)
    for name in ("neg", "x"):
        assert relative_error(got[name], truth[name]) < 2e-6, name


def test_an_outlier_beyond_float32_is_as_far_as_it_gets(place):
    x = draw((20, 2), (20, 2), dtype=torch.float32, device=place.device)
    x[0][3] = 1e25  # its squared distances are infinite
    got = evaluate(x, place.backend, period=20)
    others = [i for i in range(40) if i != 3]
    assert got["neg"][others].isfinite().all() and got["x"][others].isfinite().all()
    z = oracle(x, period=20)
    torch.testing.assert_close(got["neg"][others].double(), z["neg"][others], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dof", KERNELS)
def test_a_negative_scale_gives_nan(place, dof):
    x = draw((5, 2), (5, 2), device=place.device)
    assert student_lse(x, multiplier=-1.0, dof=dof, period=5, backend=place.backend).isnan().all()


@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize(("n", "d"), [(600, 2), (300, 40)])
def test_the_same_bits_for_any_number_of_threads(dof, n, d):
    x, threads, results = draw((n, d), (n, d), dtype=torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(evaluate(x, "cpu", dof=dof, period=n))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


LAYOUTS = {
    "strided columns": lambda z: torch.stack([z, torch.full_like(z, torch.nan)], -1).flatten(1)[:, ::2],
    "strided rows": lambda z: torch.stack([z, torch.full_like(z, torch.nan)], 1).flatten(0, 1)[::2],
    "transposed": lambda z: z.T.contiguous().T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_layout_gives_the_same(place, layout, dtype):
    x = draw((37, 5), (37, 5), dtype=dtype, device=place.device)
    plain = student_lse(x, multiplier=0.5, period=37, backend=place.backend)
    laid = student_lse([LAYOUTS[layout](t) for t in x], multiplier=0.5, period=37, backend=place.backend)
    assert torch.equal(plain, laid)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dof", KERNELS)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(place, dtype, dof, learned):
    x = draw((4, 2), (4, 2), dtype=dtype, device=place.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(0.5, dtype=wide, device=place.device) if learned else None
    forward = torch.ops.ssl_kernels.student_lse.default
    neg, low = forward(x, scale, 1.5, dof, 4, place.backend)
    back = (torch.ones_like(neg), x, scale, 1.5, dof, 4, neg, low, place.backend)
    torch.library.opcheck(torch.ops.ssl_kernels.student_lse_backward.default, back)
    for t in x if scale is None else [*x, scale]:
        t.requires_grad_()
    torch.library.opcheck(forward, (x, scale, 1.5, dof, 4, place.backend))


def test_compiles_with_infinitely_many_degrees_of_freedom(place):
    torch._dynamo.reset()
    x = [t.requires_grad_() for t in draw((6, 2), (6, 2), device=place.device)]
    compiled = torch.compile(
        lambda *x: student_lse(x, dof=math.inf, period=6, backend=place.backend), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*x), student_lse(x, dof=math.inf, period=6, backend=place.backend))


def test_second_derivatives_are_refused(place):
    x = [t.requires_grad_() for t in draw((4, 2), (4, 2), device=place.device)]
    neg = student_lse(x, period=4, backend=place.backend)
    (first,) = torch.autograd.grad(neg.sum(), x[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        first.sum().backward()


X = draw((6, 3))
BAD = [
    ({"x": []}, ValueError, "x: expected at least one tensor, got none"),
    ({"x": draw((4, 3), (4, 2))}, ValueError, r"x\[1\]: expected width 3 as x\[0\], got 2"),
    ({"x": [X[0].long()]}, TypeError, r"x\[0\]: expected float32, float64, bfloat16 or float16, got torch.int64"),
    ({"period": 4}, ValueError, "period: expected a positive divisor of the 6 rows, got 4"),
    ({"dof": 0}, ValueError, "dof: expected a number above 0, got 0.0"),
    ({"dof": math.nan}, ValueError, "dof: expected a number above 0, got nan"),
    ({"scale": torch.ones(2)}, ValueError, r"scale: expected one element, got shape \(2,\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        student_lse(**{"x": X, "period": 3} | arguments, backend="reference")
