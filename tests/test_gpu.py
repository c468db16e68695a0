"""What only a GPU can show: streams, graphs, synchronisation, memory and sizes. ``make gpu`` runs this file."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ssl_kernels import nt_xent_loss, nt_xent_reference, testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, as_leaves, evaluate, peak_extra_bytes, relative_error, temperatures

pytestmark = pytest.mark.gpu

HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=[name for name in testing.backends_for("cuda") if name != "reference"])
def backend(request):
    from ssl_kernels import backends

    if reason := backends.status()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(params=SPECS)
def loss(request):
    return request.param


def a_case(loss, backend, dtype=torch.bfloat16, n=1000, d=128, temperature=0.1) -> Case:
    allowed = temperatures(SPECS[loss])
    return Case(loss, backend, "cuda", dtype, n, d, temperature if temperature in allowed else allowed[0])


def step(case: Case, leaves: dict) -> torch.Tensor:
    for name in case.spec.asking:
        if isinstance(leaves[name], torch.Tensor):
            leaves[name].grad = None
    value = case.fused(**leaves)
    value.backward()
    return value.detach()


def leaves_of(case: Case, seed: int = 0) -> dict:
    return as_leaves(case.inputs(seed), case.spec.asking)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("n", [33, 1000])
def test_a_captured_graph_replays_on_new_inputs(loss, backend, dtype, n):
    case = a_case(loss, backend, dtype, n)
    leaves = leaves_of(case)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(case, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step(case, leaves)
    for seed in (1, 2, 3):
        fresh = case.inputs(seed)
        expected = case.evaluate(fresh)
        for name, leaf in leaves.items():
            if isinstance(leaf, torch.Tensor):
                leaf.data.copy_(fresh[name])
        for name in case.spec.asking:
            leaves[name].grad.fill_(torch.nan)
        graph.replay()
        assert torch.equal(value, expected.loss)
        assert all(torch.equal(leaves[name].grad, expected[name]) for name in case.spec.asking)


def test_runs_on_the_current_stream_and_waits_for_nobody_else(loss, backend):
    case = a_case(loss, backend)
    inputs = case.inputs(1)
    expected = case.evaluate(inputs)
    wide = [name for name in inputs if isinstance(inputs[name], torch.Tensor) and inputs[name].is_floating_point()]
    late = inputs | {name: torch.full_like(inputs[name], torch.nan) for name in wide}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # inputs arrive late on this stream: whoever reads on another one reads NaN
        for name in wide:
            late[name].copy_(inputs[name])
        got = case.evaluate(late)
    stream.synchronize()
    assert all(torch.equal(got[name], expected[name]) for name in expected.names)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_never_synchronises_with_the_host(loss, backend, dtype, temperature):
    case = a_case(loss, backend, dtype, temperature=temperature)
    leaves = leaves_of(case)
    plain = leaves | {name: case.inputs(learned=False)[name] for name in case.spec.parameters}
    step(case, leaves), case.fused(**plain).backward()  # compiles and loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, leaves)
        case.fused(**plain).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(100, 33), (4096, 128), (1500, 512)])
def test_the_same_bits_every_time_whatever_else_runs(loss, backend, dtype, n, d):
    case = a_case(loss, backend, dtype, n, d)
    inputs = case.inputs()
    first = case.evaluate(inputs)
    noise, stream = torch.randn(4096, 4096, device="cuda"), torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(stream):
            noise @ noise
        again = case.evaluate(inputs)
        assert all(torch.equal(again[name], first[name]) for name in first.names)


def test_peak_memory_is_far_from_the_matrix(loss, backend):
    case = a_case(loss, backend, torch.bfloat16, n=16384)
    leaves = leaves_of(case)
    step(case, leaves_of(a_case(loss, backend)))
    rows = sum(len(leaf) for leaf in leaves.values() if isinstance(leaf, torch.Tensor) and leaf.dim() > 1)
    # every buffer of M x D that one could think of, in float32, is far below the smallest matrix in bfloat16
    assert peak_extra_bytes(lambda: step(case, leaves), "cuda") < min(12 * rows * case.d * 4, case.n**2 * 2 / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_more_rows_than_int32_has_indices(backend, dtype):
    """M = 46,342: the entries of the matrix no longer fit into 31 bits."""
    case = a_case("nt_xent", backend, dtype, n=23171, d=16)
    inputs = case.inputs()
    got = evaluate(case.fused, inputs)
    z = torch.cat([inputs["z1"], inputs["z2"]]).double()
    z = torch.nn.functional.normalize(z, dim=1)
    total = 0.0
    for rows in torch.arange(len(z), device="cuda").split(2048):
        s = z[rows] @ z.T / 0.1
        s[torch.arange(len(rows), device="cuda"), rows] = -torch.inf
        total += (s.logsumexp(1) - s[torch.arange(len(rows), device="cuda"), (rows + case.n) % len(z)]).sum().item()
    assert abs(got.loss.item() - total / len(z)) < 1e-5 * total / len(z)
    assert all(grad.isfinite().all() for grad in got.grads.values())
    small = evaluate(case.fused, case.inputs() | {k: inputs[k][-512:] for k in case.spec.features})
    assert not torch.equal(got["z1"][-512:], small["z1"])


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_large_and_ragged(backend, dtype):
    case = a_case("nt_xent", backend, dtype, n=4099, d=200)
    inputs = case.inputs()
    wide = {name: value.double() for name, value in inputs.items()}
    truth, eager = evaluate(nt_xent_reference, wide), evaluate(nt_xent_reference, inputs)
    got = evaluate(case.fused, inputs)
    for name in truth.names:
        floor = 2 * torch.finfo(truth[name].dtype if name == "loss" else inputs[name].dtype).eps
        allowed = 2 * max(relative_error(eager[name], truth[name]), floor, torch.finfo(torch.float32).eps)
        assert relative_error(got[name], truth[name]) <= allowed, name


def test_a_zero_temperature_on_the_gpu_gives_nan_not_a_synchronisation(backend):
    z = torch.randn(2, 64, 32, device="cuda")
    assert nt_xent_loss(*z, torch.zeros((), device="cuda"), backend=backend).isnan()


def test_mixed_devices_are_refused():
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="^z2: expected device cuda:0 as z1, got cpu$"):
        nt_xent_loss(z.cuda(), z)
    with pytest.raises(ValueError, match="^backend='cpu' cannot serve cuda tensors: "):
        nt_xent_loss(z.cuda(), z.cuda(), backend="cpu")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_another_device_than_the_current_one(loss, backend):
    case = a_case(loss, backend)
    inputs = case.inputs()
    expected = case.evaluate(inputs)
    got = case.evaluate({k: v.to("cuda:1") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
    assert all(torch.equal(got[name].cpu(), expected[name].cpu()) for name in expected.names)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_with_inductor(loss, backend, mode):
    torch._dynamo.reset()
    case = a_case(loss, backend, torch.float32, n=256, d=64)
    inputs = case.inputs()
    compiled = torch.compile(partial(case.fused), fullgraph=True, mode=mode)
    expected = case.evaluate(inputs)
    for _ in range(3):  # the third call of reduce-overhead replays a graph
        got = evaluate(compiled, inputs, case.spec.asking)
        for name in expected.names:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("precision", "allowed"), [("highest", 1e-5), ("high", 3e-3)])
def test_float32_follows_the_matmul_precision(backend, precision, allowed):
    case = a_case("nt_xent", backend, torch.float32, n=512)
    inputs = case.inputs()
    truth = evaluate(nt_xent_reference, {name: value.double() for name, value in inputs.items()})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = evaluate(case.fused, inputs)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(relative_error(got[name], truth[name]) < allowed for name in truth.names)
