"""Exponential moving averages: what they are, what they leave alone, and what they refuse."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from ssl_kernels import EMAModel, backends, cosine_momentum, ema_update_, rounding_state
from ssl_kernels.ops import FLOATS, average_

HALVES = (torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)
SHAPES = ((3,), (70, 33), (), (5, 0), (2, 3, 4, 5), (1, 70001))
needs_cpu = pytest.mark.skipif(backends.status()["cpu"] is not None, reason=f"cpu: {backends.status()['cpu']}")


def draw(to: torch.dtype, of: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    source = [torch.randn(s, dtype=torch.float64, generator=generator).to(of) for s in SHAPES]
    target = [s.double() + 0.1 * torch.randn(s.shape, dtype=torch.float64, generator=generator) for s in source]
    return [t.to(device, to) for t in target], [s.to(device) for s in source]


def network(dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)
    net = nn.Sequential(*layers).to(device)
    net(torch.randn(4, 3, 8, 8, device=device))  # statistics that are not those of a new layer
    return net.to(dtype)


# ------------------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("momentum", [0.0, 1e-6, 0.3, 0.5, 0.7, 0.999, 0.99999, 1.0])
@pytest.mark.parametrize("of", FLOATS, ids=str)
@pytest.mark.parametrize("to", WIDE, ids=str)
def test_the_average_is_within_a_rounding_of_the_exact_one(place, to, of, momentum):
    target, source = draw(to, of, place.device)
    exact = [momentum * t.double() + (1 - momentum) * s.double() for t, s in zip(target, source, strict=True)]
    before = [t.data_ptr() for t in target]
    ema_update_(target, source, momentum, backend=place.backend)
    assert [t.data_ptr() for t in target] == before
    for got, t in zip(target, exact, strict=True):
        torch.testing.assert_close(got.double(), t, rtol=2 * torch.finfo(to).eps, atol=torch.finfo(to).eps)


@pytest.mark.parametrize("to", WIDE, ids=str)
def test_small_steps_keep_their_digits(place, to):
    """In float32, 1 - 0.99999 has lost two digits: the weight must not be made of the rounded momentum."""
    target, source = [torch.zeros(1000, dtype=to, device=place.device)], [torch.ones(1000, device=place.device)]
    ema_update_(target, source, 0.99999, backend=place.backend)
    assert (target[0].double() / (1 - 0.99999) - 1).abs().max() < 2 * torch.finfo(to).eps


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_are_exact_whatever_the_numbers(place, momentum):
    odd = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 1e38, -1e38, 1e-45], device=place.device)
    target, source = [odd.flip(0).clone()], [odd.clone()]
    expected = source[0].clone() if momentum == 0 else target[0].clone()
    ema_update_(target, source, momentum, backend=place.backend)
    torch.testing.assert_close(target[0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_momentum_as_a_tensor(place, dtype):
    target, source = draw(torch.float32, torch.float32, place.device)
    expected = copy.deepcopy(target)
    m = torch.tensor(0.96875, dtype=dtype, device=place.device)  # exact in every dtype
    ema_update_(target, source, m, backend=place.backend)
    ema_update_(expected, source, 0.96875, backend=place.backend)
    for a, b in zip(target, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-7)
    ema_update_(target, source, m.reshape(1, 1), backend=place.backend)


LAYOUTS = {
    "columns of a wider one": lambda t: torch.cat([torch.full_like(t, torch.nan), t], 1)[:, t.shape[1] :],
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other row": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], 1).flatten(0, 1)[::2],
    "channels last": lambda t: t[None, :, :, None].to(memory_format=torch.channels_last),
    "one element late": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("mine", LAYOUTS)
@pytest.mark.parametrize("theirs", ["as the target", "contiguous"])
def test_any_layout(place, mine, theirs):
    t, s = torch.randn(2, 37, 41, device=place.device)
    expected = t.clone()
    ema_update_([expected], [s], 0.9, backend=place.backend)
    target, shape = LAYOUTS[mine](t), None
    shape = target.shape
    source = LAYOUTS[mine](s) if theirs == "as the target" else s.reshape(shape)
    stride = target.stride()
    ema_update_([target], [source], 0.9, backend=place.backend)
    torch.testing.assert_close(target.reshape(37, 41), expected, rtol=2e-7, atol=1e-7)
    assert target.stride() == stride
    base = target._base if target._base is not None else target
    assert base.isnan().sum() in (0, 37 * 41), "what lies between its elements is not the target's"


# ------------------------------------------------------------------------------------------------- stochastic rounding
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_stochastic_rounding_keeps_the_expectation(place, dtype):
    """A step of a twentieth of the last digit, many times: rounded to nearest it would never happen."""
    eps = torch.finfo(dtype).eps
    target, source = torch.ones(20000, dtype=dtype, device=place.device), torch.ones(20000, device=place.device)
    source += 50 * eps
    state = rounding_state(3, place.device)
    for k in range(40):
        ema_update_([target], [source], 0.999, rounding=state, backend=place.backend)
        moved = (target.double().mean() - 1).item() / eps
        expected = 50 * (1 - 0.999 ** (k + 1))
        assert abs(moved - expected) < 0.05  # five standard deviations
    assert state.tolist() == [3, 40]
    values = ((target.double() - 1) / eps).unique().tolist()
    assert len(values) > 3 and all(v == int(v) for v in values)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_equal_states_round_alike_and_others_do_not(place, dtype):
    target, source = draw(dtype, torch.float32, place.device)

    def after(seed, step):
        t = copy.deepcopy(target)
        state = torch.tensor([seed, step], device=place.device)
        ema_update_(t, source, 0.99, rounding=state, backend=place.backend)
        return torch.cat([x.flatten() for x in t])

    first = after(1, 2)
    assert torch.equal(first, after(1, 2))
    for other in ((2, 2), (1, 3), (1 + (1 << 32), 2), (1, 2 + (1 << 32)), (-1, 2)):
        assert (after(*other) != first).float().mean() > 0.05
    again = after(1, 2)[1:]  # elements of one call differ among themselves too
    assert (again.float() - torch.cat([t.flatten() for t in target])[1:].float()).unique().numel() > 100


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_stochastic_rounding_picks_a_neighbour(place, dtype):
    scales = torch.randint(-30, 15, (50000,), generator=torch.Generator().manual_seed(0)).double().exp2()
    exact = torch.randn(50000, generator=torch.Generator().manual_seed(1)).double() * scales
    exact = exact.clamp(-60000, 60000).float().to(place.device)
    target = torch.zeros(50000, dtype=dtype, device=place.device)
    ema_update_([target], [2 * exact], 0.5, rounding=rounding_state(0, place.device), backend=place.backend)
    nearest = exact.to(dtype)
    toward = torch.where(nearest.float() < exact, torch.inf, -torch.inf).to(dtype)
    # torch.nextafter does not know float16: by the bits
    bits = nearest.view(torch.int16)
    up = (toward > 0) == (nearest > 0)
    other = torch.where(up, bits + 1, bits - 1).view(dtype)
    other = torch.where(nearest == 0, torch.copysign(torch.ones_like(bits).view(dtype), toward), other)
    assert ((target == nearest) | (target == other)).all()
    assert (target == nearest).float().mean() > 0.5
    representable = nearest.float() == exact
    assert torch.equal(target[representable], nearest[representable])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_average_of_16_bits_is_refused_with_the_reason(place, dtype):
    target, source = draw(dtype, dtype, place.device)
    bits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    with pytest.raises(
        ValueError, match=rf"target\[0\].*stands still.*below 2\^-{bits} of a value.*stochastic rounding"
    ):
        ema_update_(target, source, 0.99, backend=place.backend)


# ------------------------------------------------------------------------------------------------------ whole models
@pytest.mark.parametrize("buffers", ["average", "copy", "keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models(place, buffers, dtype):
    average, online = network(seed=0, device=place.device), network(dtype, seed=1, device=place.device)
    before = copy.deepcopy(average)
    ema_update_(average, online, 0.75, buffers=buffers, backend=place.backend)
    pairs = zip(average.parameters(), before.parameters(), online.parameters(), strict=True)
    for got, t, s in pairs:
        torch.testing.assert_close(got, 0.75 * t + 0.25 * s)
        assert got.dtype == torch.float32 and got.requires_grad
    for got, t, s in zip(average.buffers(), before.buffers(), online.buffers(), strict=True):
        if buffers == "keep":
            assert torch.equal(got, t)
        elif buffers == "copy" or not got.is_floating_point():
            assert torch.equal(got, s.to(got.dtype))
        else:
            torch.testing.assert_close(got, 0.75 * t + 0.25 * s)


def test_lists_copy_what_cannot_be_averaged(place):
    on = {"device": place.device}
    target = [torch.zeros(3, **on), torch.tensor(5, **on), torch.tensor([True, False], **on), torch.zeros(2, **on)]
    source = [torch.ones(3, **on), torch.tensor(7, **on), torch.tensor([False, True], **on), torch.ones(2, **on)]
    ema_update_(iter(target), tuple(source), 0.5, backend=place.backend)
    assert [t.tolist() for t in target] == [[0.5] * 3, 7, [False, True], [0.5] * 2]
    ema_update_([], [], 0.5, backend=place.backend)


def test_no_gradient_and_no_graph(place):
    average, online = network(device=place.device), network(seed=1, device=place.device)
    ema_update_(average, online, 0.9, backend=place.backend)
    assert all(p.is_leaf and p.grad is None for m in (average, online) for p in m.parameters())


def test_a_tensor_kept_for_backward_notices_the_update(place):
    weight, x = torch.randn(3, 3, device=place.device), torch.randn(3, 3, device=place.device, requires_grad=True)
    loss = (x @ weight).sum()
    ema_update_([weight], [torch.zeros_like(weight)], 0.5, backend=place.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode(place):
    with torch.inference_mode():
        target, source = torch.zeros(3, device=place.device), torch.ones(3, device=place.device)
        ema_update_([target], [source], 0.5, backend=place.backend)
        assert target.tolist() == [0.5] * 3


class TestEMAModel:
    def test_follows_a_model(self, place):
        model = network(device=place.device)
        ema = EMAModel(model, 0.5, backend=place.backend)
        x = torch.randn(2, 3, 8, 8, device=place.device)
        model.eval(), ema.eval()
        assert torch.equal(ema(x), model(x))
        assert not any(p.requires_grad for p in ema.parameters()) and all(p.requires_grad for p in model.parameters())
        expected = copy.deepcopy(model)
        for step in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p))
                    p.grad = None
            momentum = None if step == 0 else 0.25
            ema.update(model, momentum)
            ema_update_(expected, model, momentum or 0.5, backend="reference")
        for got, want in zip(ema.module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(got, want)

    def test_state_survives_a_checkpoint(self):
        model = network(torch.bfloat16)
        first, second = (EMAModel(model, 0.9, rounding_seed=s, buffers="copy") for s in (1, 2))
        for _ in range(3):
            first.update(network(torch.bfloat16, seed=3))
        second.load_state_dict(first.state_dict())
        for _ in range(2):
            for ema in (first, second):
                ema.update(network(torch.bfloat16, seed=4))
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert first.rounding.tolist() == [1, 5]

    def test_16_bits_are_averaged_in_float32_unless_rounding_is_asked_for(self):
        model = network(torch.bfloat16)
        assert {p.dtype for p in EMAModel(model).parameters()} == {torch.float32}
        assert {p.dtype for p in EMAModel(model, rounding_seed=0).parameters()} == {torch.bfloat16}
        assert {p.dtype for p in EMAModel(model, dtype=torch.float64).parameters()} == {torch.float64}
        assert {p.dtype for p in EMAModel(network(torch.float64)).parameters()} == {torch.float64}
        ema = EMAModel(model)
        assert ema.module[1].num_batches_tracked.dtype == torch.int64
        ema.update(model)

    def test_tied_weights_are_averaged_once(self):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        ema = EMAModel(model, 0.5)
        start = model[0].weight.detach().clone()
        with torch.no_grad():
            model[0].weight.add_(1)
        ema.update(model)
        torch.testing.assert_close(ema.module[1].weight, start + 0.5)
        assert ema.module[0].weight is ema.module[1].weight


# --------------------------------------------------------------------------------------------------------- schedules
def test_cosine_momentum():
    assert cosine_momentum(0, 100) == pytest.approx(0.996)
    assert cosine_momentum(100, 100) == cosine_momentum(1000, 100) == 1.0
    assert cosine_momentum(50, 100, 0.9, 1.0) == pytest.approx(0.95)
    assert cosine_momentum(25, 100, 0.0, 1.0) == pytest.approx(1 - (1 + math.cos(math.pi / 4)) / 2)
    values = [cosine_momentum(k, 10, 0.99, 1.0) for k in range(11)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 1.5), "base: expected a number from 0 to 1, got 1.5"),
        ((0, 10, 0.5, -1.0), "final: expected a number from 0 to 1, got -1.0"),
        ((0, 0), "total: expected at least one step, got 0"),
        ((-1, 10), "step: expected 0 or more, got -1"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_momentum(*arguments)


# ------------------------------------------------------------------------------------------------------- bad arguments
A, B = torch.zeros(4, 3), torch.ones(4, 3)
META = torch.zeros(4, 3, device="meta")
LONG = torch.zeros(12)
BAD = [
    (([A], [B], 1.5), {}, ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
    (([A], [B], -0.1), {}, ValueError, "momentum: expected a number from 0 to 1, got -0.1"),
    (([A], [B], math.nan), {}, ValueError, "momentum: expected a number from 0 to 1, got nan"),
    (([A], [B], torch.tensor(2.0)), {}, ValueError, "momentum: expected a number from 0 to 1, got 2.0"),
    (([A], [B], torch.zeros(2)), {}, ValueError, r"momentum: expected a number or one .*float32 of shape \(2,\)"),
    (([A], [B], torch.tensor(1)), {}, ValueError, "momentum: expected .* floating-point element, got torch.int64"),
    (([A, A], [B], 0.5), {}, ValueError, "source: expected 2 tensors as target, got 1"),
    (([A], [B.T], 0.5), {}, ValueError, r"source\[0\]: expected shape \(4, 3\) as target\[0\], got \(3, 4\)"),
    (([A], [META], 0.5), {}, ValueError, r"source\[0\]: expected device cpu as target\[0\], got meta"),
    (([A], [B.long()], 0.5), {}, TypeError, r"source\[0\]: expected float32, .*, got torch.int64"),
    (([A.to(torch.complex64)], [B], 0.5), {}, TypeError, r"source\[0\]: expected dtype torch.complex64 as target\[0\]"),
    (([A.long()], [B.int()], 0.5), {}, TypeError, r"source\[0\]: expected dtype torch.int64 as .*, got torch.int32"),
    (([A, A], [B, B], 0.5), {}, ValueError, r"target\[1\]: shares memory with target\[0\]: .* memory of its own"),
    (([A], [A], 0.5), {}, ValueError, r"(target|source)\[0\]: shares memory with (target|source)\[0\]"),
    (([LONG[:8]], [LONG[4:]], 0.5), {}, ValueError, r"source\[0\]: shares memory with target\[0\]"),
    (([LONG[4:]], [LONG[:8]], 0.5), {}, ValueError, r"target\[0\]: shares memory with source\[0\]"),
    (([A[:1].expand(4, 3)], [B], 0.5), {}, ValueError, r"target\[0\]: its elements share memory"),
    (
        ([A], [B], 0.5),
        {"rounding": torch.zeros(2)},
        ValueError,
        r"rounding: expected int64 of shape \(2,\) on cpu, got",
    ),
    (([A], [B], 0.5), {"buffers": "none"}, ValueError, "buffers: expected one of average, copy, keep, got 'none'"),
    (([A], nn.Linear(1, 1), 0.5), {}, TypeError, "source: expected tensors as target, got a module"),
    ((nn.Linear(1, 1), [A], 0.5), {}, TypeError, "source: expected a module as target, got list"),
    ((nn.Linear(1, 1), nn.Linear(1, 1, bias=False), 0.5), {}, ValueError, "source: expected 2 parameters .*, got 1"),
    (([A], [B], 0.5), {"backend": "fast"}, ValueError, "backend: expected one of .*, got 'fast'"),
]


@pytest.mark.parametrize(("arguments", "more", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
def test_bad_arguments_say_what_is_wrong(arguments, more, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ema_update_(*arguments, **more)
    assert (A == 0).all()


def test_sources_may_share_memory_and_neighbours_may_touch(place):
    flat = torch.zeros(20, device=place.device)
    source = torch.ones(10, device=place.device)
    ema_update_([flat[:10], flat[10:]], [source, source], 0.5, backend=place.backend)
    assert (flat == 0.5).all()


# --------------------------------------------------------------------------------------------------- torch's machinery
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_opcheck(place, dtype, as_tensor):
    target, source = draw(dtype, torch.float32, place.device)
    momentum = torch.tensor(0.9, device=place.device) if as_tensor else None
    rounding = rounding_state(0, place.device) if dtype == torch.bfloat16 else None
    arguments = target, source, momentum, 0.9, 1, rounding, place.backend
    torch.library.opcheck(torch.ops.ssl_kernels.average_.default, arguments)


@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
def test_compiles_in_one_graph_for_any_momentum(place, engine):
    torch._dynamo.reset()
    average, online = network(device=place.device), network(seed=1, device=place.device)
    expected = copy.deepcopy(average)
    compiled = torch.compile(
        lambda m: ema_update_(average, online, m, backend=place.backend), fullgraph=True, backend=engine
    )
    for momentum in (0.9, 0.8, 0.7, 1.0, 0.0):
        compiled(momentum)
        ema_update_(expected, online, momentum, backend=place.backend)
        for a, b in zip(average.state_dict().values(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)
    compiled(torch.tensor(0.5, device=place.device))


def test_autocast_changes_nothing(place):
    target, source = draw(torch.float32, torch.float32, place.device)
    expected = copy.deepcopy(target)
    ema_update_(expected, source, 0.9, backend=place.backend)
    with torch.autocast(place.device, dtype=torch.bfloat16):
        ema_update_(target, source, 0.9, backend=place.backend)
    assert all(torch.equal(a, b) for a, b in zip(target, expected, strict=True))


@pytest.mark.gpu
def test_a_captured_graph_follows_momentum_and_state():
    online, average = network(device="cuda"), network(seed=1, device="cuda").to(torch.bfloat16)
    momentum, state = torch.tensor(0.9, device="cuda"), rounding_state(5, "cuda")
    expected, other = copy.deepcopy(average), state.clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        ema_update_(average, online, momentum, rounding=state)
    torch.cuda.current_stream().wait_stream(side)
    ema_update_(expected, online, momentum, rounding=other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ema_update_(average, online, momentum, rounding=state)
    for value in (0.5, 0.99, 0.1):
        momentum.fill_(value)
        with torch.no_grad():
            for p in online.parameters():
                p.add_(0.1)
        graph.replay()
        ema_update_(expected, online, momentum, rounding=other)
        for a, b in zip(average.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(state, other)


# ------------------------------------------------------------------------------------------------------ threads, forks
@needs_cpu
@pytest.mark.parametrize("to", FLOATS, ids=str)
def test_the_same_bits_on_any_number_of_threads(to):
    target, source = draw(to, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            t = copy.deepcopy(target)
            ema_update_(t, source, 0.99, rounding=rounding_state(1) if to in HALVES else None, backend="cpu")
            results.append(t)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@needs_cpu
def test_every_instruction_set_averages_alike():
    from ssl_kernels._native import load

    native, _ = load()
    used = native.isa()
    try:
        for to in FLOATS:
            for of in FLOATS:
                target, source = draw(to, of)
                results = []
                for isa in native.isas():
                    native.use_isa(isa)
                    t, state = copy.deepcopy(target), rounding_state(1 << 40)
                    ema_update_(t, source, 0.5, rounding=state if to in HALVES else None, backend="cpu")
                    results.append(t)
                for other in results[1:]:
                    for a, b in zip(other, results[0], strict=True):
                        if to in HALVES:  # the same random bits; a sum with one rounding or with two may straddle them
                            assert (a != b).float().sum() <= 1e-3 * a.numel()
                        else:
                            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(to).eps, atol=torch.finfo(to).eps)
    finally:
        native.use_isa(used)


@needs_cpu
def test_a_forked_child_may_average():
    code = """
import os, torch
from ssl_kernels import ema_update_
torch.set_num_threads(3)
t, s = [torch.zeros(300000)], [torch.ones(300000)]
ema_update_(t, s, 0.5, backend="cpu")
child = os.fork()
if child == 0:
    ema_update_(t, s, 0.5, backend="cpu")
    os._exit(0 if t[0].tolist() == [0.75] * 300000 else 1)  # not with torch, whose own pool would hang here
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout.split() == ["0"], done.stderr


def test_the_op_takes_lists_and_says_how_many_are_copied():
    target, source = [torch.zeros(2), torch.zeros(2)], [torch.ones(2), torch.ones(2)]
    average_(target, source, 0.5, copied=1)
    assert [t.tolist() for t in target] == [[0.5, 0.5], [1.0, 1.0]]
    with pytest.raises(ValueError, match="copied: expected 0 to 2 pairs, got 3"):
        average_(target, source, 0.5, copied=3)
