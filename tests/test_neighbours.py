"""``nearest``: who is nearest, who may not be, and who wins among equals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_kernels.ops import FLOATS, nearest


def draw(m: int, k: int, d: int, dtype=torch.float64, device="cpu", seed=0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    make = lambda n: torch.randn(n, d, dtype=torch.float64, device=device, generator=generator).to(dtype)  # noqa: E731
    return make(m), make(k)


def one_by_one(x: Tensor, y: Tensor, skip: int | None, normalize: bool) -> list[int]:
    """The docstring of ``nearest`` in plain Python."""
    if normalize:
        x, y = (t / torch.linalg.vector_norm(t, dim=1, keepdim=True).clamp_min(1e-12) for t in (x.double(), y.double()))
    products = (x.double() @ y.double().T).tolist()
    found = []
    for i, row in enumerate(products):
        own = None if skip is None else i + skip
        candidates = [j for j in range(len(row)) if j != own]
        found.append(max(candidates, key=lambda j: (row[j], -j)) if candidates else own)
    return found


# Ragged against vectors, panels and blocks, on both sides of the width up to which products are formed in double.
SHAPES = [(1, 1, 3), (1, 7, 2), (5, 5, 1), (64, 64, 2), (65, 200, 16), (130, 130, 17), (7, 300, 128), (70, 3, 300)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("skip", [None, 0, 3, -2])
@pytest.mark.parametrize(("m", "k", "d"), SHAPES)
def test_meaning(place, m, k, d, skip, normalize):
    x, y = draw(m, k, d, device=place.device)
    index = nearest(x, y, skip=skip, normalize=normalize, backend=place.backend)
    assert index.dtype == torch.int64
    assert index.tolist() == one_by_one(x, y, skip, normalize)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "k", "d"), SHAPES)
def test_the_product_of_the_answer_is_the_largest_to_rounding(place, dtype, m, k, d):
    x, y = draw(m, k, d, dtype, place.device)
    index = nearest(x, y, backend=place.backend)
    products = torch.nn.functional.normalize(x.double(), dim=1) @ torch.nn.functional.normalize(y.double(), dim=1).T
    short = products.amax(1) - products.gather(1, index[:, None])[:, 0]
    # sums of narrow rows are exact beyond the dtype of the rows
    assert (short <= (1e-12 if d <= 16 else 1e-6)).all()


def test_the_first_of_equals_wins(place):
    x, y = draw(40, 150, 24, torch.float32, place.device)
    y[[3, 70, 149]] = y[[90]]
    index = nearest(x, y, backend=place.backend)
    assert not (set(index.tolist()) & {70, 90, 149})
    zeros = torch.zeros(5, 24, device=place.device)
    assert nearest(zeros, y, backend=place.backend).tolist() == [0] * 5
    assert nearest(zeros, zeros, skip=0, backend=place.backend).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 2), (64, 5), (65, 16), (130, 17), (300, 128), (700, 40)])
def test_a_set_against_itself(place, dtype, n, d):
    # where half of the matrix serves both its sides: the answer is that of a copy, to which it is another set
    x, _ = draw(n, 1, d, dtype, place.device)
    x[n // 2 :: 7] = x[n // 3].clone()  # equals, before and behind, of which the first wins
    if n > 64:
        x[5], x[n - 3] = 0, torch.nan
    index = nearest(x, x, skip=0, backend=place.backend)
    assert torch.equal(index, nearest(x, x.clone(), skip=0, backend=place.backend))
    assert n == 1 or not (index == torch.arange(n, device=place.device)).any()
    assert torch.equal(nearest(x, x, backend=place.backend), nearest(x, x.clone(), backend=place.backend))
    columns = torch.stack([x, x], -1).flatten(1)[:, ::2]
    assert torch.equal(nearest(columns, columns, skip=0, backend=place.backend), index)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("d", [5, 40])
def test_the_answer_is_a_row_whatever_comes(place, bad, d):
    x, _ = draw(70, 1, d, torch.float32, place.device)
    x[3] = bad
    for t in (x, torch.full_like(x, bad)):
        for skip in (None, 0):
            index = nearest(t, t, skip=skip, backend=place.backend)
            assert ((index >= 0) & (index < 70)).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_instruction_set(isa, dtype):
    x, y = draw(90, 130, 40, dtype)
    assert torch.equal(nearest(x, y, skip=1, backend="cpu"), nearest(x, y, skip=1, backend="reference"))
    assert torch.equal(nearest(y, y, skip=0, backend="cpu"), nearest(y, y, skip=0, backend="reference"))


def test_any_number_of_threads():
    (x, y), threads, found = draw(500, 700, 64, torch.float32), torch.get_num_threads(), []
    y[100::50] = y[99]
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(torch.cat([nearest(x, y, backend="cpu"), nearest(y, y, skip=0, backend="cpu")]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found)


def test_rows_of_any_stride(place):
    x, y = draw(33, 41, 20, torch.float32, place.device)
    wide = torch.stack([y, torch.full_like(y, torch.nan)], -1).flatten(1)[:, ::2]
    expected = nearest(x, y, backend=place.backend)
    assert torch.equal(nearest(x.T.contiguous().T, wide, backend=place.backend), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("skip", [None, 0])
def test_opcheck(place, dtype, skip):
    x, y = draw(5, 6, 3, dtype, place.device)
    torch.library.opcheck(torch.ops.ssl_kernels.nearest.default, (x, y, skip, True, place.backend))


def test_compiles_and_needs_no_gradient(place):
    torch._dynamo.reset()
    x, y = (t.requires_grad_() for t in draw(9, 12, 4, device=place.device))
    compiled = torch.compile(lambda x, y: nearest(x, y, backend=place.backend), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), nearest(x, y, backend=place.backend))
    assert not nearest(x, y, backend=place.backend).requires_grad


X, Y = draw(4, 5, 3)
BAD = [
    ({"x": X[0]}, ValueError, r"x: expected 2 dimensions \[N, D\], got shape \(3,\)"),
    ({"x": X[:0]}, ValueError, r"x: expected at least one row and one column, got shape \(0, 3\)"),
    ({"y": Y[:, :2]}, ValueError, r"y\[0\]: expected width 3 as x, got 2"),
    ({"y": Y.float()}, ValueError, r"y\[0\]: expected dtype torch.float64 as x, got torch.float32"),
    ({"y": Y.long()}, TypeError, r"y\[0\]: expected float32, float64, bfloat16 or float16, got torch.int64"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        nearest(**{"x": X, "y": Y} | arguments, backend="reference")
