"""The kernels that go once through memory (averages, queue, cosines) against the definitions."""

from __future__ import annotations

import pytest
import serving
import torch
from serving import kernels

from ssl_kernels.backends import reference

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (F32, F64, BF16, F16)
HALVES = (BF16, F16)


# ---------------------------------------------------------------------------------------------------------- averages
SHAPES = ((3,), (70, 33), (), (4096,), (0, 5), (1, 4097), (16,))


def pairs(to, of, seed=0):
    torch.manual_seed(seed)
    source = [torch.randn(s, dtype=F64).to(of) for s in SHAPES]
    return [(s.double() + 0.1 * torch.randn(s.shape, dtype=F64)).to(to) for s in source], source


def average(target, source, momentum, copied=0, rounding=None, backend=kernels):
    serving.reach(*target, *source)
    tensor = isinstance(momentum, torch.Tensor)
    arguments = (momentum, 0.0) if tensor else (None, momentum)
    try:
        backend.average_(target, source, *arguments, copied, rounding)
    finally:
        serving.reach()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.7, 0.999, 1.0, torch.tensor(0.99), torch.tensor([0.996], dtype=F64)])
@pytest.mark.parametrize("of", DTYPES, ids=str)
@pytest.mark.parametrize("to", DTYPES, ids=str)
def test_averages(to, of, momentum):
    target, source = pairs(to, of)
    mine, theirs = [t.clone() for t in target], [t.clone() for t in target]
    states = [torch.tensor([5 + (7 << 32), 3]) if to in HALVES else None for _ in range(2)]
    average(mine, source, momentum, rounding=states[0])
    average(theirs, source, momentum, rounding=states[1], backend=reference)
    for a, b in zip(mine, theirs, strict=True):
        if to in HALVES:  # the same random bits, so all but those at the very edge are the same numbers
            assert (a != b).sum() <= 1 + 2e-3 * a.numel()
        else:
            torch.testing.assert_close(a, b, rtol=4 * torch.finfo(to).eps, atol=torch.finfo(to).eps)
    if to in HALVES:
        assert states[0].tolist() == states[1].tolist() == [5 + (7 << 32), 4]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_random_bits_are_those_of_the_definition(dtype):
    """Without rounding before the rounding (one side is zero, the momentum a half) every bit is the same."""
    exponents = torch.randint(-28, 15, (9000,))
    source = [(torch.randn(9000) * exponents.float().exp2()).clamp(-65504, 65504)]
    source[0][:2] = torch.tensor([131040.0, -131039.0])
    results = []
    for backend in (kernels, reference):
        target, state = [torch.zeros(9000, dtype=dtype)], torch.tensor([-3, (1 << 32) + 1])
        average(target, source, 0.5, rounding=state, backend=backend)
        results.append(target[0].view(torch.int16))
    assert torch.equal(*results)
    assert (results[0] != (source[0] / 2).to(dtype).view(torch.int16)).float().mean() > 0.1


def test_copies_beside_averages_of_several_kinds():
    target = [torch.randn(5), torch.randn(5, dtype=F64), torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=bool)]
    target += [torch.randn(6), torch.randn(4097)[1:]]  # the last is not aligned
    source = [torch.randn(5).half(), torch.randn(5), torch.tensor([1, -2, 1 << 40]), torch.rand(4) > 0.5]
    source += [torch.randn(6).bfloat16(), torch.randn(4096)]
    order = [0, 1, 5, 4, 2, 3]
    target, source = [target[k] for k in order], [source[k] for k in order]
    expected = [t.clone() for t in target]
    average(expected, source, 0.9, copied=3, backend=reference)
    average(target, source, 0.9, copied=3)
    for got, want in zip(target, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(serving.NAME != "cuda", reason="whose launches hold the addresses of 800 pairs")
def test_as_many_launches_as_the_addresses_fill():
    """The number of the call counts calls, not launches."""
    rounding = torch.tensor([1, 0])
    target, source = ([torch.full((3,), float(k)) for k in range(n, n + 1700)] for n in (0, 1))
    target[5], source[5] = (t[5].bfloat16() for t in (target, source))
    average(target, source, 0.5, rounding=rounding)
    for k, t in enumerate(target):
        assert (t.float() - (k + 0.5)).abs().max() <= (2**-5 if k == 5 else 0)
    assert rounding.tolist() == [1, 1]


@pytest.mark.skipif(serving.NAME != "triton", reason="whose table of addresses lies on the device")
def test_one_launch_whatever_the_number_of_tensors(monkeypatch):
    from ssl_kernels.backends.triton_kernels import averaging

    launches = []
    kernel = averaging.average

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(averaging, "average", Counted())
    target, source = [torch.randn(100) for _ in range(40)], [torch.randn(100) for _ in range(40)]
    average(target, source, 0.9)
    assert launches == [(40,)]


@pytest.mark.skipif(serving.NAME != "triton", reason="whose table of addresses lies on the device")
def test_the_table_is_built_once_and_again_for_other_tensors(monkeypatch):
    from ssl_kernels.backends.triton_kernels import averaging

    built = []
    build = averaging._build
    monkeypatch.setattr(averaging, "_build", lambda *args: built.append(1) or build(*args))
    target, source = [torch.randn(10)], [torch.randn(10)]
    for momentum in (0.9, 0.8, 0.7):
        average(target, source, momentum)
    assert len(built) == 1
    average(target, [torch.randn(10)], 0.5)
    assert len(built) == 2
    keep = [(torch.zeros(1), torch.zeros(1)) for _ in range(averaging.TABLES + 5)]
    for a, b in keep:
        average([a], [b], 0.5)
    assert len(averaging._plans) == averaging.TABLES


# ------------------------------------------------------------------------------------------------------------- queue
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("size", "count", "pointer"), [(10, 4, 0), (10, 4, 8), (10, 4, 6), (10, 23, 3), (1, 1, 0), (70, 200, 69)]
)
def test_queue(size, count, pointer, normalize, wrap):
    for width, to, of in ((5, F32, F32), (70, BF16, F32), (2100, F16, BF16), (16, F64, F32), (3, F32, F64)):
        queue, rows = torch.randn(size, width).to(to), torch.randn(count, width).to(of)
        rows[0] = 0
        results = []
        for backend in (kernels, reference):
            state = queue.clone(), torch.tensor([pointer])
            backend.enqueue_(*state, rows, normalize, wrap)
            results.append(state)
        (mine, at), (theirs, there) = results
        assert at.tolist() == there.tolist()
        torch.testing.assert_close(mine, theirs, rtol=2 * torch.finfo(to).eps, atol=torch.finfo(to).eps)


def test_queue_and_batch_may_have_gaps_between_rows():
    wide = torch.full((12, 20), torch.nan)
    queue, rows = wide[:, 4:14], torch.randn(4, 20)[:, 3:13]
    queue.zero_()
    kernels.enqueue_(queue, torch.tensor(10), rows, True, True)
    expected = torch.nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(queue[[10, 11, 0, 1]], expected)
    assert wide.isnan().sum() == 120 and (queue[2:10] == 0).all()


# ----------------------------------------------------------------------------------------------------------- cosines
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "width"), [(1, 1), (70, 3), (33, 128), (5, 200), (3, 2048), (2, 4100)])
def test_cosines(dtype, count, width):
    x, y = torch.randn(2, count, width, dtype=F64).to(dtype)
    x[0] = 0
    y[-1] *= 1e-5
    dvalue = torch.randn(count, dtype=F64 if dtype == F64 else F32)
    x = torch.stack([x, x], 1)[:, 0]  # rows with gaps between them
    for want in ((True, True), (True, False), (False, True)):
        results = []
        for backend in (kernels, reference):
            kept = backend.cosine(x, y, 1e-8)
            results.append((*kept, *backend.cosine_backward(dvalue, x, y, *kept, 1e-8, *want)))
        for got, expected in zip(*results, strict=True):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            torch.testing.assert_close(got, expected)
