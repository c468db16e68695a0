"""Every loss on every backend: the same promises for all, from the one table of cases."""

from __future__ import annotations

import copy
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_kernels import testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, as_leaves, check, check_precision, evaluate, oracle, relative_error


@pytest.fixture(params=SPECS.values(), ids=list(SPECS))
def spec(request):
    return request.param


def a_case(spec, place, n=12, d=20, dtype=torch.float32, temperature=0.1, **rest) -> Case:
    """A case of a loss, at a size and a temperature that it is defined for."""
    allowed = testing.temperatures(spec)
    temperature = temperature if spec.temperatures is None and len(allowed) > 1 else _nearest(temperature, allowed)
    return Case(spec.name, place.backend, place.device, dtype, max(n, spec.smallest), d, temperature, **rest)


def _nearest(temperature: float, allowed: tuple[float, ...]) -> float:
    return min(allowed, key=lambda other: abs(other - temperature))


def leaves_of(case: Case, inputs: dict) -> dict:
    return as_leaves(inputs, case.spec.asking)


def to(dtype: torch.dtype, inputs: dict, names=None) -> dict:
    """The inputs with the floating-point tensors of two dimensions (or those called ``names``) in ``dtype``."""

    def is_meant(name, value):
        return isinstance(value, Tensor) and value.is_floating_point() and (name in names if names else value.dim() > 1)

    return {name: value.to(dtype) if is_meant(name, value) else value for name, value in inputs.items()}


def is_of_directions(spec) -> bool:
    """Whether the length of a row does not matter to the loss."""
    inputs = Case(spec.name, "reference", "cpu", torch.float64, 6, 5, 1.0).inputs()
    longer = {name: 2 * value if name in spec.features else value for name, value in inputs.items()}
    return torch.allclose(spec.reference(**inputs), spec.reference(**longer), rtol=1e-12)


# ----------------------------------------------------------------------------------------------------------- precision
def test_value_and_gradients_on_every_case(case):
    check(case.fused, case)


def test_precision_over_many_draws(precision_case):
    check_precision(precision_case.fused, precision_case)


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (2, 0.1), (5, 0.02), (9, -0.5), (9, 3.0)])
def test_gradcheck(spec, place, n, temperature):
    case = a_case(spec, place, n, 4, torch.float64, temperature)
    inputs = case.inputs()
    leaves = [inputs[name].requires_grad_() for name in spec.asking]

    def call(function, *values: Tensor) -> Tensor:
        return function(**inputs | dict(zip(spec.asking, values, strict=True)))

    if not torch.autograd.gradcheck(partial(call, spec.reference), leaves, raise_exception=False):
        pytest.skip("a part of it is constant to autograd, by definition")
    assert torch.autograd.gradcheck(partial(call, case.fused), leaves, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.02, 0.01])
def test_a_trained_model_keeps_its_digits(spec, place, temperature):
    if not spec.cross_entropy:
        pytest.skip("its gradients do not vanish with it")
    case = a_case(spec, place, 256, 64, torch.float32, temperature, trained=True)
    inputs = case.inputs()
    truth = evaluate(partial(spec.fused, backend="reference"), testing.widened(inputs), spec.asking)
    got = case.evaluate(inputs)
    for name in spec.features:  # a few roundings of the logits, where the plain way may have lost every digit
        assert relative_error(got[name], truth[name]) < 2e-7 / temperature


def test_the_oracle_of_the_trained_regime_is_the_definition(spec):
    case = Case(spec.name, "reference", "cpu", torch.float64, 256, 64, 0.1, trained=True)
    inputs = case.inputs()
    truth, got = oracle(spec, inputs), case.evaluate(inputs)
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
    expected = case.evaluate(inputs)
    leaves = leaves_of(case, inputs)
    laid = {k: LAYOUTS[layout](v) if k in spec.features else v for k, v in leaves.items()}
    assert all(torch.equal(laid[k], inputs[k]) for k in spec.features)
    loss = case.fused(**laid)
    loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    for name in spec.asking:
        torch.testing.assert_close(leaves[name].grad, expected[name])


def test_expanded_rows(spec, place):
    inputs = (case := a_case(spec, place, 8, 5)).inputs()
    views = {k: v[:1].clone().expand(v.shape) if k in spec.features else v for k, v in inputs.items()}
    dense = {k: v.contiguous() if k in spec.features else v for k, v in views.items()}
    torch.testing.assert_close(case.fused(**views), case.fused(**dense))


def test_gradient_arriving_expanded_or_strided(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = case.evaluate(inputs)
    leaves = leaves_of(case, inputs)
    (case.fused(**leaves).expand(3) * torch.tensor([1.0, 2.0, -0.5], device=place.device)).sum().backward()
    for name in spec.asking:
        # a parameter's is a difference of sums that may nearly cancel
        assert relative_error(leaves[name].grad, 2.5 * expected[name]) < (1e-6 if name in spec.features else 1e-4)


def test_inputs_are_not_written_to(spec, place):
    inputs = (case := a_case(spec, place, 33, 40)).inputs()
    before = copy.deepcopy(inputs)
    case.fused(**inputs)
    case.fused(**{k: v.requires_grad_() if k in spec.asking else v for k, v in inputs.items()}).backward()
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


def test_only_what_asks_gets_a_gradient(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = case.evaluate(inputs)
    for asking in spec.asking:
        leaves = as_leaves(inputs, [asking])
        case.fused(**leaves).backward()
        assert [name for name, leaf in leaves.items() if getattr(leaf, "grad", None) is not None] == [asking]
        torch.testing.assert_close(leaves[asking].grad, expected[asking])
    assert not case.fused(**inputs).requires_grad
    with torch.no_grad():
        assert not case.fused(**leaves_of(case, inputs)).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(case.fused(**inputs), expected.loss)


# ------------------------------------------------------------------------------------------------------------- autograd
def test_backward_twice_and_accumulation(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    expected = case.evaluate(inputs)
    leaves = leaves_of(case, inputs)
    loss = case.fused(**leaves)
    loss.backward(retain_graph=True)
    for name in spec.asking:
        assert torch.equal(leaves[name].grad, expected[name])
    loss.backward()
    for name in spec.asking:
        assert torch.equal(leaves[name].grad, 2 * expected[name])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_an_input_changed_before_backward_is_noticed(spec, place):
    inputs = (case := a_case(spec, place)).inputs()
    for changed in spec.features:
        leaves = leaves_of(case, inputs)
        features = {k: leaves[k] * 1 for k in spec.features}
        loss = case.fused(**leaves | features)
        features[changed].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_second_derivatives_are_right_or_refused(spec, place):
    inputs = (case := a_case(spec, place, 5, 4, torch.float64)).inputs()

    def second(function):
        leaves = leaves_of(case, inputs)
        first = torch.autograd.grad(function(**leaves), leaves[spec.features[0]], create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), [leaves[name] for name in spec.features])

    try:
        got = second(case.fused)
    except RuntimeError as error:
        assert re.search("second derivatives are not available.*_reference", str(error))
        return
    torch.testing.assert_close(got, second(spec.reference))


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward_ad", "jacrev", "hessian"])
def test_function_transforms_are_right_or_refused(spec, place, transform):
    inputs = (case := a_case(spec, place, 4, 3, torch.float64)).inputs()
    name = spec.features[0]
    x = inputs.pop(name)
    t = torch.ones_like(x)

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

    try:
        expected = run(spec.reference)
    except (RuntimeError, NotImplementedError):
        pytest.skip(f"the reference has no {transform} either")
    try:
        got = run(case.fused)
    except (RuntimeError, NotImplementedError):
        return  # refused is fine, silently wrong is not
    torch.testing.assert_close(got, expected)


# ---------------------------------------------------------------------------------------------- torch.library, opcheck
class Recorder(TorchDispatchMode):
    """Keeps the arguments of the first call of every op of the waist."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple] = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "ssl_kernels":
            self.calls.setdefault(op._schema.name, (op, _detached(args)))
        return op(*args, **(kwargs or {}))


def _detached(value):
    if isinstance(value, (list, tuple)):
        return [_detached(v) for v in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def ops_called(case: Case, learned: bool = True) -> dict[str, tuple]:
    inputs = case.inputs(learned=learned)
    with Recorder() as recorder:
        with torch.no_grad():
            case.fused(**inputs)
        case.evaluate(inputs)
    return recorder.calls


# float16 among them, because a small batch of anything else may have its gradients with the loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck_of_every_op_it_calls(spec, place, dtype, learned):
    for name, (op, arguments) in ops_called(a_case(spec, place, 6, 5, dtype), learned).items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutogradCPU"):
            asking_for_gradients(arguments)
        torch.library.opcheck(op, tuple(arguments))


# No loss calls them: state, and the steps of Sinkhorn-Knopp. They are checked where they are tested.
BESIDES = {f"ssl_kernels::{name}" for name in ("average_", "enqueue_", "biased_lse", "prototype_lse")}


def test_no_op_escapes_opcheck():
    every = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssl_kernels::")}
    place = SimpleNamespace(backend="reference", device="cpu")
    dtypes = torch.float32, torch.float16
    called = [ops_called(a_case(spec, place, 6, 5, dtype)) for spec in SPECS.values() for dtype in dtypes]
    assert every - BESIDES == set().union(*called)


def asking_for_gradients(arguments) -> None:
    for value in arguments:
        if isinstance(value, list):
            asking_for_gradients(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            value.requires_grad_()


# -------------------------------------------------------------------------------------- torch.compile, autocast, graph
@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_in_one_graph(spec, place, engine, dtype):
    torch._dynamo.reset()
    inputs = (case := a_case(spec, place, dtype=dtype)).inputs()
    compiled = torch.compile(case.fused, fullgraph=True, backend=engine)
    expected, got = case.evaluate(inputs), evaluate(compiled, inputs, spec.asking)
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
        inputs = case.inputs(learned=learned)
        torch.testing.assert_close(compiled(**inputs), case.fused(**inputs))
    assert len(graphs) == 1


def test_compiles_for_every_plain_temperature(spec, place):
    torch._dynamo.reset()
    compiled = torch.compile(a_case(spec, place).fused, fullgraph=True, backend="eager")
    for temperature in (0.1, 0.2, 0.3):
        case = a_case(spec, place, temperature=temperature)
        inputs = case.inputs(learned=False)
        torch.testing.assert_close(compiled(**inputs), case.fused(**inputs))


def test_compiles_with_inductor_inside_a_model(spec, place):
    torch._dynamo.reset()
    case = a_case(spec, place, 16, 8)
    inputs = case.inputs()

    def step(function, weight, **inputs):
        return function(**{k: (v @ weight).relu() + v if k in spec.features else v for k, v in inputs.items()})

    inputs["weight"] = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).to(place.device)
    plain, compiled = partial(step, case.fused), torch.compile(partial(step, case.fused), fullgraph=True)
    asking = [*spec.asking, "weight"]
    expected, got = evaluate(plain, inputs, asking), evaluate(compiled, inputs, asking)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_widens_and_answers_in_float32(spec, place, half):
    inputs = (case := a_case(spec, place)).inputs()
    mixed = to(half, inputs, spec.features[:1])
    expected = case.evaluate(to(torch.float32, mixed))
    with torch.autocast(place.device, dtype=half):
        got = case.evaluate(mixed)
        assert case.fused(**to(half, inputs)).dtype == torch.float32
    torch.testing.assert_close(got.loss, expected.loss)
    for name in got.grads:
        torch.testing.assert_close(got[name], expected[name].to(mixed[name].dtype))


# ---------------------------------------------------------------------------------------- numbers out of the ordinary
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5), (65, 33), (150, 128)])
def test_what_is_not_finite_stays_so(spec, place, bad, dtype, n, d):
    d = int(min(d, spec.largest / 4 / n**2))  # sixteen calls of the definition
    case = a_case(spec, place, n, d, dtype)
    for name in spec.features:
        for i, j in {(0, 0), (n - 1, d - 1), (n // 2, 0), (0, d // 2)}:
            inputs = case.inputs()
            inputs[name][i, j] = bad
            # the definition in float64: torch's products of 16 bits make NaN of infinities at some widths on some CPUs
            got, truth = case.evaluate(inputs), evaluate(spec.reference, testing.widened(inputs), spec.asking)
            row = truth[name][i]  # the gradient of the row that holds it
            if bad is torch.nan and n > 1:
                assert truth.loss.isnan() and row.isnan().any()
            # an infinity does no harm at the end of a sigmoid: not where the truth is finite too
            assert not got.loss.isfinite() or truth.loss.isfinite()
            assert not got[name][i].isfinite().all() or row.isfinite().all()


def test_nan_as_a_parameter_is_refused_or_nan(spec, place):
    for name in spec.parameters:
        inputs = a_case(spec, place).inputs() | {name: torch.tensor(torch.nan, device=place.device)}
        try:
            assert spec.fused(**inputs, backend=place.backend).isnan()
        except ValueError as error:
            assert name in str(error)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 3, 40])
def test_zero_rows_give_finite_gradients(spec, place, dtype, n):
    case = a_case(spec, place, n, 16, dtype)
    for rows in ([0], [n - 1], slice(None)):
        inputs = case.inputs()
        for name in spec.features:
            inputs[name][rows] = 0
        got = case.evaluate(inputs)
        assert got.loss.isfinite()
        assert all(grad.isfinite().all() for grad in got.grads.values())
        if dtype in (torch.float32, torch.float64):
            check(case.fused, case, inputs)


@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0])
def test_duplicate_and_opposite_rows(spec, place, temperature):
    case = a_case(spec, place, 70, 24, temperature=temperature)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][1::4] = inputs[name][0]
        inputs[name][2::4] = -inputs[name][0]
    check(case.fused, case, inputs)


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_all_rows_alike(spec, place, temperature):
    case = a_case(spec, place, 64, 32, temperature=temperature)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][:] = inputs[spec.features[0]][0]
    check(case.fused, case, inputs)


@pytest.mark.parametrize("exponent", [-30, 30])
def test_rows_of_very_different_length(spec, place, exponent):
    if not is_of_directions(spec):
        pytest.skip("lengths are part of the loss")
    case = a_case(spec, place, 40, 24)
    inputs = case.inputs()
    for name in spec.features:
        inputs[name][::3] *= 2.0**exponent
    check(case.fused, case, inputs)


# ------------------------------------------------------------------------------------------ parameters in every form
def test_parameters_in_every_form(spec, place):
    case = a_case(spec, place, 20, 16, temperature=0.25)
    inputs = case.inputs(learned=False)
    expected = case.fused(**inputs)
    on = partial(torch.tensor, device=place.device)
    for name in spec.parameters:
        number = float(inputs[name])
        for form in (on(number), on([number]), on([[number]]), on(number, dtype=torch.float64), on(number).bfloat16()):
            leaf = torch.nn.Parameter(form)
            loss = case.fused(**inputs | {name: leaf})
            loss.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
            assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype
        one = case.fused(**inputs | {name: 1.0})
        torch.testing.assert_close(case.fused(**inputs | {name: on(1)}), one)
        anywhere = case.fused(**inputs | {name: torch.tensor(number)})  # a CPU scalar
        torch.testing.assert_close(anywhere, case.fused(**inputs | {name: on(number)}), rtol=0, atol=0)


def test_a_flat_temperature_is_the_logarithm(place):
    inputs = a_case(SPECS["nt_xent"], place, 20, 16).inputs() | {"temperature": float("inf")}
    loss = SPECS["nt_xent"].fused(**inputs, backend=place.backend)
    torch.testing.assert_close(loss.item(), torch.tensor(39.0).log().item())


# ------------------------------------------------------------------------------------ memory, threads, repeatability
def test_saves_no_matrix_for_backward(spec, place):
    if place.backend == "reference":
        pytest.skip("the reference stores the matrix while it computes")
    inputs = (case := a_case(spec, place, 512, 8)).inputs()
    given = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
    # the gradients at most, and some numbers a row; the matrix is 1 MiB
    assert testing.saved_bytes(case.fused, inputs, spec.asking) <= 2 * given + 16 * 1024 * 4


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(33, 40), (257, 128), (700, 64)])
def test_the_same_bits_every_time(spec, place, dtype, n, d):
    if place == ("reference", "cuda"):
        pytest.skip("eager kernels promise no bits")
    inputs = (case := a_case(spec, place, n, d, dtype)).inputs()
    first = case.evaluate(inputs)
    for _ in range(2):
        again = case.evaluate(inputs)
        assert all(torch.equal(again[name], first[name]) for name in first.names)
