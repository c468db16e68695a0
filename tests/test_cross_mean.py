"""``cross_softplus_mean``: a loss that comes with its gradients is the one that is put together from ``cross_lse``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_kernels.ops import FLOATS, cross_lse, cross_mean, cross_softplus_mean, mean_log_share
from ssl_kernels.testing import evaluate, poisoned_memory, relative_error, saved_bytes

AT_ONCE = [dtype for dtype in FLOATS if dtype != torch.float16]
# Rows, the columns' pieces, the width, the first row's column: ragged against tiles and blocks, and with more columns.
SHAPES = [
    (1, [1], 1, 0), (3, [3], 5, 0), (7, [4, 0, 9], 33, 2), (64, [64], 16, 0), (65, [200], 64, 100),
    (130, [130, 7], 40, 0), (300, [300], 20, 0), (520, [520], 300, 0),
]  # fmt: skip


def draw(m: int, ks: list[int], d: int, dtype=torch.float64, device="cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = lambda n: torch.randn(n, d, dtype=torch.float64, generator=generator).to(device, dtype)  # noqa: E731
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {"x": make(m), "scale": torch.tensor(3.0, dtype=wide, device=device)} | {
        f"y{k}": make(n) for k, n in enumerate(ks)
    }


def at_once(x, scale, *, offset, backend=None, **y):
    return cross_softplus_mean(x, list(y.values()), scale, 1.5, offset=offset, backend=backend)


def put_together(x, scale, *, offset, backend=None, **y):
    rows, columns = cross_lse(x, list(y.values()), scale, 1.5, offset=offset, columns=True, backend=backend)
    own = columns.neg[offset : offset + len(x)]
    return (mean_log_share(rows.neg, rows.pos) + mean_log_share(own, columns.pos)) / 2


def agree(got, expected, dtype, digits=16):
    assert got.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name in expected.names:
        wide = dtype if name not in ("loss", "scale") or dtype == torch.float64 else torch.float32
        scale = max(1.0, expected[name].norm().item()) if name != "loss" else 1.0
        assert relative_error(got[name], expected[name]) < digits * torch.finfo(wide).eps or (
            (got[name] - expected[name]).norm() < digits * torch.finfo(wide).eps * scale
        ), name


@pytest.fixture
def counted(monkeypatch):
    """How often a loss came with its gradients."""
    calls: list[int] = []
    apply = cross_mean._AtOnce.apply
    monkeypatch.setattr(cross_mean._AtOnce, "apply", lambda *a: (calls.append(1), apply(*a))[1])
    return calls


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "ks", "d", "offset"), SHAPES, ids=str)
def test_value_and_gradients(place, dtype, m, ks, d, offset, counted):
    inputs = draw(m, ks, d, dtype, place.device)
    with poisoned_memory():
        got = evaluate(lambda **leaves: at_once(**leaves, offset=offset, backend=place.backend), inputs)
    assert len(counted) == (place.device == "cpu" and dtype != torch.float16)
    wide = {name: t.double() for name, t in inputs.items()}
    expected = evaluate(lambda **leaves: put_together(**leaves, offset=offset, backend="reference"), wide)
    agree(got, expected, dtype)


@pytest.mark.parametrize("dtype", AT_ONCE, ids=str)
@pytest.mark.parametrize("scale", [0.5, 90.0, 700.0, -4.0])  # a fixed shift, one that may be too much, and none
def test_every_instruction_set(isa, dtype, scale):
    inputs = draw(90, [100], 40, dtype)
    if scale == 90.0:  # all rows point away from all columns
        inputs["x"] = inputs["x"][:1] + 0.1 * inputs["x"]
        inputs["y0"] = 0.1 * inputs["y0"] - inputs["x"][:1]
    inputs["scale"].fill_(scale / 1.5)
    got = evaluate(lambda **leaves: at_once(**leaves, offset=0, backend="cpu"), inputs)
    wide = {name: t.double() for name, t in inputs.items()}
    expected = evaluate(lambda **leaves: put_together(**leaves, offset=0, backend="reference"), wide)
    agree(got, expected, dtype, digits=16 + abs(scale))


@pytest.mark.parametrize("dtype", AT_ONCE, ids=str)
def test_the_same_bits_for_any_number_of_threads(dtype):
    inputs, threads, found = draw(400, [400], 48, dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(evaluate(lambda **leaves: at_once(**leaves, offset=0, backend="cpu"), inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[name], found[0][name]) for other in found for name in other.names)


def test_gradients_can_be_asked_for_again_and_scaled():
    inputs = {name: t.requires_grad_() for name, t in draw(9, [9], 4).items()}
    loss = at_once(**inputs, offset=0)
    once = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, list(inputs.values()))
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_a_second_derivative_raises():
    inputs = {name: t.requires_grad_() for name, t in draw(5, [6], 4).items()}
    (gradient,) = torch.autograd.grad(at_once(**inputs, offset=1), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        gradient.sum().backward()


@pytest.mark.parametrize("asking", [["x"], ["y0"], ["scale"], ["x", "y0"], ["x", "y0", "scale"], []], ids=str)
def test_who_asks_for_nothing_pays_for_nothing(place, asking, counted):
    inputs = draw(12, [12], 6, device=place.device)
    got = evaluate(lambda **leaves: at_once(**leaves, offset=0, backend=place.backend), inputs, asking)
    assert len(counted) == (place.device == "cpu" and {"x", "y0"} <= set(asking))
    expected = evaluate(lambda **leaves: put_together(**leaves, offset=0, backend="reference"), inputs, asking)
    agree(got, expected, torch.float64)


@pytest.mark.parametrize(("n", "d", "expected"), [(512, 8, 1), (520, 8, 0), (520, 260, 1), (520, 259, 0)])
def test_a_matrix_is_kept_while_it_is_no_larger_than_the_rows(n, d, expected, counted):
    inputs = {name: t.requires_grad_() for name, t in draw(n, [n], d, torch.float32).items()}
    at_once(**inputs, offset=0)
    assert len(counted) == expected


def test_saves_the_gradients_and_no_matrix():
    inputs = draw(512, [512], 8, torch.float32)
    given = sum(t.nbytes for t in inputs.values())
    assert saved_bytes(lambda **leaves: at_once(**leaves, offset=0), inputs) <= given


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(place, dtype, learned):
    inputs = draw(5, [3, 4], 6, dtype, place.device)
    x, scale, *y = (t.requires_grad_() for t in inputs.values())
    arguments = x, y, scale if learned else None, 1.5, 1, True, place.backend
    torch.library.opcheck(torch.ops.ssl_kernels.cross_softplus_mean.default, arguments)


BAD = [
    ({"x": torch.zeros(4)}, ValueError, r"x: expected 2 dimensions \[N, D\], got shape \(4,\)"),
    ({"y": [torch.zeros(4, 2)]}, ValueError, r"y\[0\]: expected width 3 as x, got 2"),
    ({"y": [torch.zeros(4, 3).double()]}, ValueError, r"y\[0\]: expected dtype torch.float32 as x, got torch.float64"),
    ({"offset": 1}, ValueError, "offset: expected 0 to 0 for 4 rows and 4 columns, got 1"),
    ({"scale": torch.ones(2)}, ValueError, r"scale: expected one element, got shape \(2,\)"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of .*, got 'gpu'"),
]


@pytest.mark.parametrize("asking", [True, False])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, error, message, asking):
    given = {"x": torch.zeros(4, 3), "y": [torch.zeros(4, 3)], "offset": 0} | arguments
    for t in (given["x"], *given["y"]):
        t.requires_grad_(asking)
    with pytest.raises(error, match=f"^{message}$"):
        cross_softplus_mean(**given)
