"""One set against another: values and gradients against float64, as good as eager's; offsets, subsets, odd inputs."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from accuracy import BF16, F16, F32, F64, assert_no_worse, matmul_precision, product
from serving import NAME, draw, kernels
from torch import Tensor

from ssl_kernels.backends import reference
from ssl_kernels.backends.gpu import launch, passes

LOOSE = {"rtol": 2e-4, "atol": 1e-5}


class Setting(NamedTuple):
    dtype: torch.dtype
    rows: int
    columns: int
    width: int
    temperature: float = 0.1
    offset: int | None = 5
    precision: str = "highest"
    normalize: bool = True
    most: tuple[int, int] = (passes.MAX_GROUPS, 4)  # groups of rows, and programs at a time

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in self._asdict().items() if k not in ("dtype", "rows", "columns", "width")]
        defaults = [f"{k}={v}" for k, v in self._field_defaults.items()]
        size = f"{self.rows}x{self.columns}x{self.width}"
        return "-".join([str(self.dtype)[6:], size, *sorted({*changed} - {*defaults})])


SETTINGS = [
    # every width class
    *[Setting(F32, 70, 90, width) for width in (3, 64, 200, 320)],
    *[Setting(BF16, 70, 90, width) for width in (16, 200, 320, 512)],
    Setting(F16, 70, 90, 64),
    Setting(F64, 34, 50, 48),
    # temperatures on both sides of the fixed shifts, and of zero
    *[Setting(F32, 70, 90, 16, temperature=t) for t in (10.0, 0.02, 0.005, -0.01)],
    *[Setting(BF16, 70, 90, 16, temperature=t) for t in (0.2, 0.07, 0.005)],
    Setting(F64, 34, 50, 16, temperature=0.005),
    # square, no positives, more columns than fit a tile before the first positive, and nothing but a positive
    Setting(BF16, 70, 70, 16, offset=0),
    Setting(F32, 70, 30, 16, offset=None),
    Setting(F32, 20, 300, 16, offset=280, temperature=0.02),
    Setting(F32, 1, 1, 16, offset=0),
    # several groups, ragged; several blocks of rows to a group, whose column sums are merged in memory
    Setting(F32, 298, 140, 16, offset=None, temperature=0.005),
    Setting(BF16, 402, 410, 16, most=(2, 1)),
    Setting(BF16, 402, 410, 16, temperature=0.01, most=(2, 1)),
    # the same of rows that are streamed
    Setting(F32, 140, 298, 200, offset=None, temperature=0.005),
    Setting(BF16, 298, 610, 320, most=(2, 1)),
    Setting(F16, 140, 298, 320, temperature=0.01),
    # the coarser products of float32
    Setting(F32, 70, 140, 64, precision="high"),
    # rows that are not normalised
    *[Setting(dtype, 70, 90, 64, normalize=False, temperature=1.0) for dtype in (F32, BF16, F64)],
    Setting(F16, 70, 90, 320, normalize=False),
    Setting(F32, 70, 298, 200, normalize=False, temperature=1.0),
]


class Result(NamedTuple):
    """Logarithms as they were before ``top`` was taken from them."""

    neg: Tensor
    pos: Tensor
    neg_y: Tensor
    pos_y: Tensor
    dx: Tensor
    dy: Tensor
    dscale: Tensor
    mean: Tensor


class Problem(NamedTuple):
    x: Tensor
    y: Tensor
    scale: Tensor
    dneg: Tensor
    dpos: Tensor
    dneg_y: Tensor
    dpos_y: Tensor
    offset: int | None
    normalize: bool

    @classmethod
    def of(cls, s: Setting) -> Problem:
        x, y = torch.randn(s.rows, s.width, dtype=F64), torch.randn(s.columns, s.width, dtype=F64)
        if not s.normalize:
            x, y = (z * torch.rand(len(z), 1, dtype=F64).mul(4).exp() / s.width for z in (x, y))
        accumulate = F64 if s.dtype == F64 else F32
        sizes = s.rows, s.rows * (s.offset is not None), s.columns, s.rows * (s.offset is not None)
        scale = torch.tensor(1 / s.temperature, dtype=accumulate)
        upstream = [torch.randn(n, dtype=accumulate) for n in sizes]
        return cls(x.to(s.dtype), y.to(s.dtype), scale, *upstream, s.offset, s.normalize)

    def to(self, dtype: torch.dtype) -> Problem:
        return self._replace(**{k: v.to(dtype) for k, v in self._asdict().items() if isinstance(v, Tensor)})

    def upstream(self) -> tuple[Tensor, ...]:
        return self.dneg, self.dpos, self.dneg_y, self.dpos_y


def of_backend(backend, p: Problem, parts: int = 1) -> Result:
    y = list(p.y.tensor_split(parts))
    args = p.x, y, p.scale, 1.0, p.offset, p.normalize
    neg, pos, top, neg_y, pos_y, top_y = backend.cross_lse(*args, True)
    dx, dy, dscale = backend.cross_lse_backward(*p.upstream(), *args, neg, top, neg_y, top_y, True, True)
    assert [t.dtype for t in (dx, *dy)] == [t.dtype for t in (p.x, *y)]
    *again, mean = backend.attend_lse(*args)
    for a, b in zip(again, (neg, pos, top), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 + 1e-6 * top.abs().max().item())
    at = slice(p.offset or 0, (p.offset or 0) + len(pos))
    logs = neg.double() + top, pos.double() + top[: len(pos)], neg_y.double() + top_y, pos_y.double() + top_y[at]
    return Result(*logs, dx, torch.cat(list(dy)), dscale, mean)


def eager(p: Problem, precision: str) -> Result:
    """What an expert writes without the kernels, in the dtype of the input throughout."""
    x, y, scale = (t.clone().requires_grad_() for t in (p.x, p.y, p.scale))
    z, w = (F.normalize(t, dim=1) if p.normalize else t for t in (x, y))
    s = product(x.dtype, precision)(z, w.T) * scale.to(x.dtype)
    positive = torch.zeros_like(s, dtype=torch.bool)
    if p.offset is not None:
        positive[:, p.offset : p.offset + len(x)].fill_diagonal_(True)
    negatives = s.masked_fill(positive, float("-inf"))
    neg, neg_y, pos = negatives.logsumexp(1), negatives.logsumexp(0), s[positive]
    received = [d.to(s.dtype) for d in p.upstream()]
    received = [d.where(r.isfinite(), 0) for d, r in zip(received, (neg, pos, neg_y, pos), strict=True)]
    torch.autograd.backward([neg, pos, neg_y, pos], received)
    mean = (negatives - neg[:, None]).exp().nan_to_num(0).detach() @ w.detach()
    grads = [t.grad.where(t.grad.isfinite(), 0) for t in (x, y, scale)]
    return Result(neg.detach(), pos.detach(), neg_y.detach(), pos.detach(), *grads, mean)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Few programs run at a time, so that the interpreter has few to run: still several spans of columns."""
    monkeypatch.setattr(launch, "PROGRAMS", 4)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_worse_than_eager(setting, monkeypatch):
    monkeypatch.setattr(passes, "MAX_GROUPS", setting.most[0])
    monkeypatch.setattr(launch, "PROGRAMS", setting.most[1])
    with matmul_precision(setting.precision):
        p = Problem.of(setting)
        got, want = of_backend(kernels, p, parts=2 if setting.columns > 1 else 1), of_backend(reference, p.to(F64))
    peer = eager(p, setting.precision)
    for name in Result._fields:
        ours, theirs, true = (getattr(r, name) for r in (got, peer, want))
        assert_no_worse(name, ours, theirs, true, _last_bits(setting, p, want, name))


def _last_bits(setting: Setting, p: Problem, want: Result, name: str) -> float:
    """Two units in the last place, of a result or of what it is the sum of."""
    true = getattr(want, name)
    size = true[true.isfinite()].norm().item()
    if name in ("pos", "pos_y"):  # kept relative to the larger of the two
        negative = want.neg if name == "pos" else want.neg_y
        size += negative[negative.isfinite()].norm().item()
    if name == "dscale":
        longest = 1 if p.normalize else (p.x.norm(dim=1).max() * p.y.norm(dim=1).max()).item()
        size += sum(d.norm(1).item() for d in p.upstream()) * longest
    bits = 2 * torch.finfo(setting.dtype).eps * size
    if setting.dtype == F64:  # the truth is float64 too, and rounds logits as large as the scale in its own way
        bits *= max(4.0, 1 / abs(setting.temperature))
    if name == "dscale" and setting.precision != "highest":  # one number: eager's luck, against a tenth of tf32's bits
        bits += 2**-14 * sum(d.norm().item() for d in p.upstream())
    return bits


FIVE = torch.tensor(5.0)


def _results(backend, x, y, scale=FIVE, offset=0, normalize=True, columns=True, *, multiplier=1.0):
    args = x, y, scale, multiplier, offset, normalize
    neg, pos, top, neg_y, pos_y, top_y = backend.cross_lse(*args, columns)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.rand(t.shape, generator=generator).to(t.dtype) for t in (neg, pos, neg_y, pos_y)]
    dx, dy, dscale = backend.cross_lse_backward(*upstream, *args, neg, top, neg_y, top_y, True, True)
    forward = neg + top, pos + top[: len(pos)], top, neg_y + top_y, pos_y, top_y
    return [*forward, dx, *dy, dscale, *backend.attend_lse(*args)]


def assert_alike(*args, **kwargs):
    for got, want in zip(_results(kernels, *args, **kwargs), _results(reference, *args, **kwargs), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, equal_nan=True, **LOOSE)


def test_rows_alone():
    x, y = torch.randn(40, 16), torch.randn(70, 16)
    assert_alike(x, [y], columns=False)
    assert_alike(x, [y], torch.tensor(200.0), columns=False)
    assert_alike(x, [y], offset=None, columns=False, normalize=False)


@pytest.mark.skipif(NAME != "cuda", reason="only the CUDA kernels keep the gradient's entries")
@pytest.mark.parametrize(("dtype", "width"), [(F16, 320), (F32, 200)])
@pytest.mark.parametrize("normalize", [True, False])
def test_kept_entries_serve_both_sides_block_by_block(dtype, width, normalize, monkeypatch):
    from ssl_kernels.backends.cuda import wide

    x, y = torch.randn(300, width).to(dtype), (torch.randn(90, width) * torch.rand(90, 1).mul(4).exp() / 30).to(dtype)
    args = x, [y], torch.tensor(3.0 if normalize else 0.1), 1.0, 5, normalize
    neg, _, top, neg_y, _, top_y = kernels.cross_lse(*args, True)
    upstream = [torch.rand(len(t)) for t in (neg, neg, neg_y, neg)]
    args = *upstream, *args, neg, top, neg_y, top_y
    dx, (dy,), _ = kernels.cross_lse_backward(*args, True, True)
    monkeypatch.setattr(wide, "COPIES", 0)  # a block of rows at a time
    again_dx, (again_dy,), _ = kernels.cross_lse_backward(*args, True, True)
    torch.testing.assert_close(again_dx, dx, rtol=0, atol=0)
    torch.testing.assert_close(again_dy, dy, rtol=2e-3, atol=1e-5)
    # a side alone is a sweep of its own
    torch.testing.assert_close(kernels.cross_lse_backward(*args, True, False)[0], dx, rtol=0, atol=0)
    torch.testing.assert_close(kernels.cross_lse_backward(*args, False, True)[1][0], dy, rtol=2e-3, atol=1e-5)


def test_parts_of_any_number_stride_and_length():
    base = torch.randn(40, 80)
    assert_alike(base[::2, 3:19], [base[:, 3:19], base[:0, :16], base.T[:16].T], offset=11)
    assert_alike(base[:5, :16], list(torch.randn(launch.MAX_INPUTS + 2, 4, 16)), offset=3)


@pytest.mark.parametrize("normalize", [True, False])
def test_zero_and_equal_rows(normalize):
    x, y = torch.randn(40, 16), torch.randn(1, 16).repeat(50, 1)
    x[3] = y[25] = 0
    y[7] = 1e-20
    assert_alike(x, [y], torch.tensor(0.5), normalize=normalize)
    for dtype in (F16, BF16):
        for t in _results(kernels, x.to(dtype), [y.to(dtype)], normalize=normalize):
            assert t.isfinite().all()


def test_huge_and_tiny_rows():
    x, y = torch.randn(40, 16), torch.randn(50, 16)
    x[::3] *= 1e25
    y[1::3] *= 1e-9
    got, want = _results(kernels, x, [y]), _results(reference, x.double(), [y.double()], torch.tensor(5.0, dtype=F64))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=5e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [5.0, 10.0, 200.0])
def test_nan_comes_out(scale):
    x, y = torch.randn(40, 16), torch.randn(50, 16)
    y[49, 3] = float("nan")  # nobody's positive
    neg, _, _, neg_y, _, _, dx, dy, dscale, neg_attend, *_, mean = _results(kernels, x, [y], torch.tensor(scale))
    for t in (neg, dx, dy, dscale, neg_attend, mean, neg_y[49]):
        assert t.isnan().all()
    assert neg_y[:49].isfinite().all()


@pytest.mark.parametrize("scale", [None, torch.tensor([0.0]), torch.tensor(0.1, dtype=BF16)], ids=str)
def test_scale_and_multiplier(scale):
    assert_alike(torch.randn(40, 16), [torch.randn(50, 16)], scale, multiplier=30.0)


@pytest.mark.parametrize("columns", [True, False])
def test_only_what_is_wanted(columns):
    x, y, scale = torch.randn(40, 16), list(torch.randn(2, 30, 16)), torch.tensor(5.0)
    args = x, y, scale, 1.0, 7, True
    neg, pos, top, neg_y, pos_y, top_y = kernels.cross_lse(*args, columns)
    assert len(neg_y) == len(top_y) == 60 * columns
    # as autograd hands them over: one number for all, and of no elements where there is nothing
    upstream = [torch.ones(()).expand(t.shape) for t in (neg, pos, neg_y, pos_y)]

    def run(want_x, want_y):
        return kernels.cross_lse_backward(*upstream, *args, neg, top, neg_y, top_y, want_x, want_y)

    dx, dy, dscale = run(True, True)
    only_x, only_y, neither = run(True, False), run(False, True), run(False, False)
    assert torch.equal(only_x[0], dx)
    assert torch.equal(torch.cat(only_y[1]), torch.cat(dy))
    for result in (only_x, only_y, neither):
        torch.testing.assert_close(result[2], dscale, **LOOSE)
    for t in (*only_x[1], only_y[0], neither[0], *neither[1]):
        assert t.numel() == 0


@pytest.mark.parametrize("sizes", [(1.0, 2.0**30), (2.0**30, 1.0), (2.0**-40, 2.0**-42), (0.0, 0.0)], ids=str)
def test_upstream_gradients_of_any_size(sizes):
    x, y = torch.randn(40, 16), torch.randn(50, 16)
    args = x, [y], torch.tensor(5.0), 1.0, None, True
    neg, pos, top, neg_y, _, top_y = kernels.cross_lse(*args, True)
    rest = *args, neg, top, neg_y, top_y, True, True
    upstream = torch.full((40,), sizes[0]), pos, torch.full((50,), sizes[1]), pos
    dx, (dy,), _ = kernels.cross_lse_backward(*upstream, *rest)
    want_x, (want_y,), _ = reference.cross_lse_backward(*upstream, *rest)
    for got, want in ((dx, want_x), (dy, want_y)):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * max(sizes))


def test_order_of_programs_changes_no_bit(monkeypatch):
    p = Problem.of(Setting(F32, 140, 160, 16))
    first = of_backend(kernels, p)
    draw(1)
    for a, b in zip(first, of_backend(kernels, p), strict=True):
        assert torch.equal(a, b)


def test_few_rows_fill_the_machine(monkeypatch):
    """A queue: more spans of columns than ``combine`` takes at a time, and fewer rows to a program."""
    monkeypatch.setattr(launch, "PROGRAMS", 264)
    monkeypatch.setattr(passes, "MAX_GROUPS", 4)
    assert_alike(torch.randn(3, 16), [torch.randn(700, 16)], torch.tensor(30.0), None, columns=False)
