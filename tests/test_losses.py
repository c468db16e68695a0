"""Every loss on every backend: the same promises for all, from the one table of cases."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssl_kernels import testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, check, check_precision, evaluate, oracle, relative_error


@pytest.fixture(params=SPECS.values(), ids=list(SPECS))
def spec(request):
    return request.param


def a_case(spec, place, n=12, d=20, dtype=torch.float32, temperature=0.1, **rest) -> Case:
    return Case(spec.name, place.backend, place.device, dtype, n, d, temperature, **rest)


# ----------------------------------------------------------------------------------------------------------- precision
def test_value_and_gradients_on_every_case(case):
    check(case.fused, case)


def test_precision_over_many_draws(precision_case):
    check_precision(precision_case.fused, precision_case)


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (2, 0.1), (5, 0.02), (9, -0.5), (9, 3.0)])
def test_gradcheck(spec, place, n, temperature):
    case = a_case(spec, place, n, 4, torch.float64, temperature)
    inputs = case.inputs()
    names = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    leaves = [inputs[name].requires_grad_() for name in names]

    def call(*values: Tensor) -> Tensor:
        return case.fused(**{**inputs, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(call, leaves, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.02, 0.01])
def test_a_trained_model_keeps_its_digits(spec, place, temperature):
    case = a_case(spec, place, 256, 64, torch.float32, temperature, trained=True)
    inputs = case.inputs()
    wide = {k: v.double() for k, v in inputs.items()}
    truth = evaluate(partial(spec.fused, backend="reference"), wide)
    got, eager = evaluate(case.fused, inputs), evaluate(spec.reference, inputs)
    for name in spec.features:
        assert relative_error(got[name], truth[name]) < 2e-7 / temperature  # a few roundings of the logits
    if temperature <= 0.02:  # what was gained: the plain way has lost them
        assert relative_error(eager[spec.features[0]], truth[spec.features[0]]) > 1e-3


def test_the_oracle_of_the_trained_regime_is_the_definition(spec):
    case = Case(spec.name, "reference", "cpu", torch.float64, 256, 64, 0.1, trained=True)
    inputs = case.inputs()
    truth, got = oracle(spec, inputs), evaluate(case.fused, inputs)
    for name in truth.names:
        assert relative_error(got[name], truth[name]) < 1e-10


# -------------------------------------------------------------------------------------------------- what may be passed
LAYOUTS = {
    "strided columns": lambda z: torch.stack([z, torch.full_like(z, torch.nan)], -1).flatten(1)[:, ::2],
    "strided rows": lambda z: torch.stack([z, torch.full_like(z, torch.nan)], 1).flatten(0, 1)[::2],
    "transposed": lambda z: z.T.contiguous().T,
    "a slice of wider rows": lambda z: torch.cat([torch.full_like(z, torch.nan), z], 1)[:, z.shape[1] :],
    "flipped": lambda z: z.flip(0).flip(0),
    "offset by one element": lambda z: torch.cat([z.new_full((1,), torch.nan), z.flatten()])[1:].view(z.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_any_layout_gives_the_same(spec, place, layout, dtype):
    inputs = (case := a_case(spec, place, 37, 41, dtype)).inputs()
    expected = evaluate(case.fused, inputs)
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    laid = {k: LAYOUTS[layout](v) if k in spec.features else v for k, v in leaves.items()}
    assert all(torch.equal(laid[k], inputs[k]) for k in spec.features)
    loss = case.fused(**laid)
    loss.backward()
    assert torch.equal(loss, expected.loss)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name])


def test_expanded_rows(spec, place):
    inputs = (case := a_case(spec, place, 8, 5)).inputs()
    first = {k: v[:1].clone() if k in spec.features else v for k, v in inputs.items()}
    views = {k: v.expand(8, 5) if k in spec.features else v for k, v in first.items()}
    dense = {k: v.contiguous() for k, v in views.items()}
    assert torch.equal(case.fused(**views), case.fused(**dense))


def test_gradient_arriving_expanded_or_strided(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = evaluate(case.fused, inputs)
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    (case.fused(**leaves).expand(3) * torch.tensor([1.0, 2.0, -0.5], device=place.device)).sum().backward()
    for name, leaf in leaves.items():
        assert relative_error(leaf.grad, 2.5 * expected[name]) < 1e-6


def test_inputs_are_not_written_to(spec, place):
    inputs = (case := a_case(spec, place, 33, 40)).inputs()
    before = copy.deepcopy(inputs)
    evaluate(lambda **leaves: case.fused(**inputs | {k: leaves[k] for k in spec.parameters}), inputs)
    assert all(torch.equal(inputs[k], before[k]) for k in inputs)


def test_only_what_asks_gets_a_gradient(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = evaluate(case.fused, inputs)
    for asking in expected.grads:
        leaves = {k: v.clone().requires_grad_(k == asking) for k, v in inputs.items()}
        case.fused(**leaves).backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name == asking)
        assert torch.equal(leaves[asking].grad, expected[asking])
    assert not case.fused(**inputs).requires_grad
    with torch.no_grad():
        assert not case.fused(**{k: v.clone().requires_grad_() for k, v in inputs.items()}).requires_grad
    with torch.inference_mode():
        assert torch.equal(case.fused(**inputs), expected.loss)


# --------------------------------------------------------------------------------------------------------------- autogr
def test_backward_twice_and_accumulation(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = evaluate(case.fused, inputs)
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    loss = case.fused(**leaves)
    loss.backward(retain_graph=True)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name])
    loss.backward()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, 2 * expected[name])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_an_input_changed_before_backward_is_noticed(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    features = {k: leaves[k] * 1 for k in spec.features}
    loss = case.fused(**leaves | features)
    features[spec.features[0]].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    first = torch.autograd.grad(case.fused(**leaves), leaves[spec.features[0]], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivatives are not available.*_reference"):
        first.square().sum().backward()


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward_ad", "jacrev", "hessian"])
def test_function_transforms_are_right_or_refused(spec, place, transform):
    inputs = (case := a_case(spec, place, 4, 3, torch.float64)).inputs()
    name = spec.features[0]
    x, t = inputs.pop(name), torch.ones(4, 3, dtype=torch.float64, device=place.device)

    def run(function):
        call = partial(lambda z: function(**inputs, **{name: z}))
        if transform == "vmap":
            return torch.func.vmap(call)(torch.stack([x, 2 * x, x.flip(0)]))
        if transform == "jvp":
            return torch.func.jvp(call, (x,), (t,))[1]
        if transform == "forward_ad":
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(call(forward_ad.make_dual(x, t))).tangent
        return getattr(torch.func, transform)(call)(x)

    expected = run(spec.reference)
    try:
        got = run(case.fused)
    except (RuntimeError, NotImplementedError):
        return  # refused is fine, silently wrong is not
    torch.testing.assert_close(got, expected)


# ----------------------------------------------------------------------------------------------------- torch.compile, a
@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_in_one_graph(spec, place, engine, dtype):
    torch._dynamo.reset()
    inputs = (case := a_case(spec, place, dtype=dtype)).inputs()
    compiled = torch.compile(case.fused, fullgraph=True, backend=engine)
    expected, got = evaluate(case.fused, inputs), evaluate(compiled, inputs)
    # to the last digits: outside a graph a small batch's loss and gradients come from one call, inside from two
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("learned", [False, True])
def test_compiles_once_for_any_shape(spec, place, learned):
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(a_case(spec, place).fused, fullgraph=True, dynamic=True, backend=count)
    for n, d, temperature in [(5, 8, 0.1), (6, 9, 0.2), (17, 33, 0.3), (30, 7, 0.4), (31, 64, 0.5)]:
        case = a_case(spec, place, n, d, temperature=temperature if learned else 0.1)
        inputs = case.inputs() if learned else case.inputs() | dict.fromkeys(spec.parameters, 0.1)
        torch.testing.assert_close(compiled(**inputs), case.fused(**inputs))
    assert len(graphs) == 1


def test_compiles_for_every_plain_temperature(spec, place):
    torch._dynamo.reset()
    case = a_case(spec, place)
    compiled = torch.compile(case.fused, fullgraph=True, backend="eager")
    for temperature in (0.1, 0.2, 0.3):
        inputs = case.inputs() | dict.fromkeys(spec.parameters, temperature)
        torch.testing.assert_close(compiled(**inputs), case.fused(**inputs))


def test_compiles_with_inductor_inside_a_model(spec, place):
    torch._dynamo.reset()
    case = a_case(spec, place, 16, 8)
    inputs = case.inputs()

    def step(function, weight, **inputs):
        return function(**{k: (v @ weight).relu() + v if k in spec.features else v for k, v in inputs.items()})

    inputs["weight"] = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).to(place.device)
    plain, compiled = partial(step, case.fused), torch.compile(partial(step, case.fused), fullgraph=True)
    expected, got = evaluate(plain, inputs), evaluate(compiled, inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_widens_and_answers_in_float32(spec, place, half):
    inputs = (case := a_case(spec, place)).inputs()
    mixed = {k: v.to(half) if k == spec.features[0] else v for k, v in inputs.items()}
    expected = evaluate(case.fused, {k: v.float() for k, v in mixed.items()})
    with torch.autocast(place.device, dtype=half):
        got = evaluate(case.fused, mixed)
        assert case.fused(**{k: v.to(half) for k, v in inputs.items()}).dtype == torch.float32
    torch.testing.assert_close(got.loss, expected.loss)
    for name in got.grads:
        torch.testing.assert_close(got[name], expected[name].to(mixed[name].dtype))


# ------------------------------------------------------------------------------------------------- numbers out of the w
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5), (65, 33), (150, 128)])
def test_nan_in_nan_out(spec, place, bad, dtype, n, d):
    case = a_case(spec, place, n, d, dtype)
    for name in spec.features:
        for i, j in {(0, 0), (n - 1, d - 1), (n // 2, 0), (0, d // 2)}:
            inputs = case.inputs()
            inputs[name][i, j] = bad
            got = evaluate(case.fused, inputs)
            assert got.loss.isnan()
            assert got[name][i].isnan().any(), "the gradient of the row that holds it"


def test_nan_temperature_as_a_tensor_is_refused_or_nan(spec, place):
    inputs = a_case(spec, place).inputs() | dict.fromkeys(spec.parameters, torch.tensor(torch.nan, device=place.device))
    try:
        assert spec.fused(**inputs, backend=place.backend).isnan()
    except ValueError as error:
        assert "temperature" in str(error)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 3, 40])
def test_zero_rows_give_finite_gradients(spec, place, dtype, n):
    case = a_case(spec, place, n, 16, dtype)
    for rows in ([0], [n - 1], list(range(n))):
        inputs = case.inputs()
        for name in spec.features:
            inputs[name][rows] = 0
        got = evaluate(case.fused, inputs)
        assert got.loss.isfinite()
        assert all(grad.isfinite().all() for grad in got.grads.values())
        if dtype in (torch.float32, torch.float64):
            check(case.fused, _fixed(case, inputs))


class _fixed(Case):
    """A case whose inputs are given instead of drawn."""

    def __init__(self, case: Case, inputs: dict) -> None:
        super().__init__(**vars(case))
        object.__setattr__(self, "given", inputs)

    def inputs(self, seed: int = 0) -> dict:
        return self.given


@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0])
def test_duplicate_and_opposite_rows(spec, place, temperature):
    case = a_case(spec, place, 70, 24, temperature=temperature)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][1::4] = inputs[name][0]
        inputs[name][2::4] = -inputs[name][0]
    check(case.fused, _fixed(case, inputs))


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_all_rows_alike(spec, place, temperature):
    case = a_case(spec, place, 64, 32, temperature=temperature)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][:] = inputs[spec.features[0]][0]
    check(case.fused, _fixed(case, inputs))


@pytest.mark.parametrize("exponent", [-30, 30])
def test_rows_of_very_different_length(spec, place, exponent):
    case = a_case(spec, place, 40, 24)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][::3] *= 2.0**exponent
    check(case.fused, _fixed(case, inputs))


# ---------------------------------------------------------------------------------------------- temperature in every fo
def test_temperature_in_every_form(place):
    spec = SPECS["nt_xent"]
    inputs = a_case(spec, place, 20, 16).inputs()
    inputs.pop("temperature")
    fused = partial(spec.fused, **inputs, backend=place.backend)
    expected = fused(temperature=0.25)
    on = partial(torch.tensor, device=place.device)
    for temperature in (on(0.25), on([0.25]), on([[0.25]]), on(0.25, dtype=torch.float64), on(0.25).bfloat16()):
        leaf = torch.nn.Parameter(temperature)
        loss = fused(temperature=leaf)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype
    assert torch.equal(fused(temperature=on(1)), fused(temperature=1.0))
    assert torch.equal(fused(temperature=torch.tensor(0.25)), fused(temperature=on(0.25)))  # a CPU scalar anywhere


def test_a_flat_temperature_is_the_logarithm(place):
    inputs = a_case(SPECS["nt_xent"], place, 20, 16).inputs() | {"temperature": float("inf")}
    loss = SPECS["nt_xent"].fused(**inputs, backend=place.backend)
    torch.testing.assert_close(loss.item(), torch.tensor(39.0).log().item())


# ----------------------------------------------------------------------------------------- memory, threads, repeatabili
def test_saves_no_matrix_for_backward(spec, place):
    if place.backend == "reference":
        pytest.skip("the reference stores the matrix while it computes")
    case = a_case(spec, place, 512, 32)
    rows = len(spec.features) * 512
    assert testing.saved_bytes(case.fused, case.inputs()) <= 8 * rows * 4 + 4096
    assert testing.saved_bytes(spec.reference, case.inputs()) > rows * rows * 4


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(33, 40), (257, 128), (700, 64)])
def test_the_same_bits_every_time(spec, place, dtype, n, d):
    if place == ("reference", "cuda"):
        pytest.skip("eager kernels promise no bits")
    case = a_case(spec, place, n, d, dtype)
    inputs = case.inputs()
    first = evaluate(case.fused, inputs)
    for _ in range(3):
        again = evaluate(case.fused, inputs)
        assert all(torch.equal(again[name], first[name]) for name in first.names)
