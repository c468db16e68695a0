"""The judge is judged: wrong losses must fail the very checks that right ones pass."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels import nt_xent_reference, testing
from ssl_kernels.losses import SPECS
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.testing import Case, check, check_precision, evaluate


def _logits(z1: Tensor, z2: Tensor, temperature) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    return z @ z.T / temperature


def _cross_entropy(logits: Tensor, shift: int = 0) -> Tensor:
    rows = len(logits)
    logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, (torch.arange(rows) + rows // 2 + shift) % rows)


def lost_diagonal_mask(z1, z2, temperature):
    logits = _logits(z1, z2, temperature)
    return F.cross_entropy(logits, torch.arange(len(logits)).roll(len(z1)))


def last_row_lost_its_mask(z1, z2, temperature):
    logits = _logits(z1, z2, temperature)
    mask = torch.eye(len(logits), dtype=torch.bool)
    mask[-1, -1] = False
    return F.cross_entropy(logits.masked_fill(mask, float("-inf")), torch.arange(len(logits)).roll(len(z1)))


def wrong_twin(z1, z2, temperature):
    return _cross_entropy(_logits(z1, z2, temperature), shift=1)


def a_column_too_few(z1, z2, temperature):
    logits = _logits(z1, z2, temperature)
    keep = torch.ones(len(logits), dtype=torch.bool)
    keep[len(z1) // 2] = False
    keep = keep | torch.eye(len(logits), dtype=torch.bool).roll(len(z1), 1)  # never a row's own positive
    return _cross_entropy(logits.masked_fill(~keep, float("-inf")))


def normalisation_outside_the_graph(z1, z2, temperature):
    n = torch.cat([z1, z2]).norm(dim=1, keepdim=True).detach().split(len(z1))
    z = torch.cat([z1 / n[0], z2 / n[1]])
    return _cross_entropy(z @ z.T / temperature)


def half_the_gradient(z1, z2, temperature):
    loss = nt_xent_reference(z1, z2, temperature)
    return loss.detach() + 0.5 * (loss - loss.detach())


def second_view_detached(z1, z2, temperature):
    return nt_xent_reference(z1, z2.detach() + 0 * z2, temperature)


def temperature_detached(z1, z2, temperature):
    return nt_xent_reference(z1, z2, temperature.detach() + 0 * temperature)


def products_in_bfloat16(z1, z2, temperature):
    z = F.normalize(torch.cat([z1, z2]), dim=1).bfloat16().to(z1.dtype)
    return _cross_entropy(z @ z.T / temperature)


def last_row_unwritten(z1, z2, temperature):
    class Lose(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, dz):
            out = torch.empty_like(dz)
            out[:-1] = dz[:-1]
            return out

    return nt_xent_reference(Lose.apply(z1), z2, temperature)


MUTANTS = (
    lost_diagonal_mask,
    last_row_lost_its_mask,
    wrong_twin,
    a_column_too_few,
    normalisation_outside_the_graph,
    half_the_gradient,
    second_view_detached,
    temperature_detached,
    products_in_bfloat16,
    last_row_unwritten,
)


def _float32_cases():
    return [c for c in testing.cases() if (c.loss, c.backend, c.dtype) == ("nt_xent", "reference", torch.float32)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda f: f.__name__)
def test_the_table_catches(mutant):
    caught = 0
    for case in _float32_cases():
        try:
            check(mutant, case)
        except AssertionError:
            caught += 1
    assert caught > len(_float32_cases()) // 4  # not by luck in one cell


def test_the_table_passes_the_reference():
    for case in _float32_cases()[::5]:
        check(nt_xent_reference, case)


def test_precision_catches_what_one_draw_cannot():
    def slightly_off(z1, z2, temperature):
        return nt_xent_reference(z1, z2, temperature) * (1 + 2e-6)

    case = Case("nt_xent", "reference", "cpu", torch.float32, *testing.PRECISION_SHAPE, temperature=0.1)
    check_precision(nt_xent_reference, case)
    with pytest.raises(AssertionError, match="relative error of loss is 2.*e-06, allowed"):
        check_precision(slightly_off, case)


def test_nan_never_passes():
    case = Case("nt_xent", "reference", "cpu", torch.float32, 4, 4, temperature=0.1)
    with pytest.raises(AssertionError, match="is off by nan"):
        check(lambda z1, z2, temperature: nt_xent_reference(z1, z2, temperature) * torch.nan, case)
    with pytest.raises(AssertionError):
        check_precision(lambda z1, z2, temperature: nt_xent_reference(z1, z2, temperature) * torch.nan, case)


def test_a_result_of_another_dtype_is_noticed():
    case = Case("nt_xent", "reference", "cpu", torch.float32, 4, 4, temperature=0.1)
    with pytest.raises(AssertionError, match="loss in torch.float32 expected, got torch.float64"):
        check(lambda **kw: nt_xent_reference(**kw).double(), case)


@pytest.mark.parametrize("loss", SPECS)
def test_the_table_is_complete(loss):
    spec, table = SPECS[loss], [case for case in testing.cases() if case.loss == loss]
    assert len(set(map(str, table))) == len(table)
    shapes = set(testing.shapes(spec))
    every = {(n, d, t) for n, d in shapes for t in testing.temperatures(spec)}
    assert {(case.n, case.d, case.temperature) for case in table} == every
    for backend in testing.backends_for("cpu"):
        for dtype in testing.DTYPES:
            mine = [case for case in table if (case.backend, case.dtype) == (backend, dtype)]
            assert {(case.n, case.d) for case in mine} == shapes
            met = {(case.temperature, case.trained) for case in mine}
            assert met == {(t, trained) for t in testing.temperatures(spec) for trained in (False, True)}


@pytest.mark.parametrize("loss", SPECS)
def test_the_precision_table_is_complete(loss):
    met = {(case.dtype, case.temperature) for case in testing.precision_cases() if case.loss == loss}
    assert met == {(dtype, t) for dtype in testing.DTYPES for t in testing.temperatures(SPECS[loss])}


@pytest.mark.parametrize("loss", SPECS)
def test_the_same_seed_draws_the_same_inputs(loss):
    case = next(case for case in reversed(testing.cases()) if case.loss == loss)
    for trained in (False, True):
        case = replace(case, trained=trained)
        first, again, other = case.inputs(3), case.inputs(3), case.inputs(4)
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        assert all(not torch.equal(first[name], other[name]) for name in case.spec.features)


def test_only_who_asks_gets_a_gradient_and_a_parameter_its_temperature():
    def function(x, y, labels, temperature):
        return ((x * y)[labels] / temperature).sum()

    def draw(n, d, **tensor):
        x, y = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
        return {"x": x, "y": y, "labels": torch.zeros(n, dtype=torch.long), "temperature": 1.0}

    inputs = draw(3, 2)
    assert evaluate(function, inputs).names == ["loss", "x", "y"]
    assert evaluate(function, inputs, ["y"]).names == ["loss", "y"]
    assert evaluate(function, inputs, []).names == ["loss"]
    spec = LossSpec("a loss", function, function, torch.nn.Identity, draw, draw, ("x",), ("temperature",))
    with mock.patch.dict(SPECS, {"a loss": spec}):
        case = Case("a loss", "reference", "cpu", torch.float32, 3, 2, 0.25)
        assert case.inputs()["temperature"].item() == 0.25 == case.inputs(learned=False)["temperature"]
        check(function, case)
        with pytest.raises(AssertionError, match="temperature .* is off by"):
            check(lambda temperature, **kw: function(temperature=temperature.detach(), **kw), case)


def test_the_same_infinity_is_no_error_and_another_is():
    inf = torch.tensor([torch.inf, 1.0])
    assert testing.relative_error(inf, inf) == 0
    assert not testing.relative_error(-inf, inf) < 1 and not testing.relative_error(torch.ones(2), inf) < 1


def test_saved_bytes_counts_what_backward_keeps_and_no_inputs():
    inputs = {"x": torch.randn(100, 10), "y": torch.randn(10, 50)}
    assert testing.saved_bytes(lambda x, y: (x @ y).sum(), inputs) == 0  # only the inputs themselves
    assert testing.saved_bytes(lambda x, y: (x @ y).exp().sum(), inputs) == 100 * 50 * 4


def test_peak_extra_bytes_sees_a_temporary():
    code = """
import torch
from ssl_kernels.testing import peak_extra_bytes
peak_extra_bytes(lambda: torch.ones(1 << 10))
print(peak_extra_bytes(lambda: torch.ones(1 << 25).sum()))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert 128 << 20 <= int(out.stdout) < 136 << 20


def test_poison_reaches_unwritten_memory():
    with testing.poisoned_memory():
        assert torch.empty(7).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_evaluate_leaves_the_inputs_alone():
    inputs = {"z1": torch.randn(3, 2), "z2": torch.randn(3, 2), "temperature": 0.5}
    result = evaluate(nt_xent_reference, inputs)
    assert result.names == ["loss", "z1", "z2"]
    assert inputs["z1"].grad is None and not inputs["z1"].requires_grad
