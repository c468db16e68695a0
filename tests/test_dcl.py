"""DCL and DCLW alone: values known by hand, weights, the modules, and what bad input gets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_kernels import DCLLoss, DCLWLoss, dcl_loss, dcl_reference, mises_fisher_weights
from ssl_kernels.testing import evaluate, relative_error


def draw(n=6, d=4, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(n, d, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(seed))


@pytest.mark.parametrize("function", [dcl_loss, dcl_reference])
def test_values_known_by_hand(function):
    eye = torch.eye(4, dtype=torch.float64)
    for temperature in (0.1, 0.5, -1.0):  # six negatives, all orthogonal, less the positive
        expected = math.log(6) - 1 / temperature
        assert function(eye, 3 * eye, temperature).item() == pytest.approx(expected, rel=1e-12)
        halved = function(eye, eye, temperature, weight_fn=lambda a, b: torch.full((len(a),), 0.5))
        assert halved.item() == pytest.approx(math.log(6) - 0.5 / temperature, rel=1e-12)
    assert function(draw(1), draw(1, seed=1)).item() == -math.inf  # one sample has no negatives


def by_views(z1, z2, temperature, weights=lambda a, b: 1.0):
    """The definition once more, a view at a time, as the paper counts."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    terms = []
    for a, b in ((z1, z2), (z2, z1)):
        pos = (a * b).sum(1) / temperature
        others = ~torch.eye(len(a), dtype=torch.bool)
        neg = torch.cat([(a @ b.T)[others].view(len(a), -1), (a @ a.T)[others].view(len(a), -1)], 1) / temperature
        terms.append((neg.logsumexp(1) - weights(a, b) * pos).mean())
    return (terms[0] + terms[1]) / 2


@pytest.mark.parametrize("temperature", [0.05, 0.5, -0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_definition_by_views(place, temperature, weighted):
    def uneven(a, b):  # not the same from both ends, and with a gradient of its own
        return 1 + (a[:, 0] * b[:, 1]).abs()

    more = {"weight_fn": uneven} if weighted else {}
    inputs = {"z1": draw(9, 5, torch.float64, place.device), "z2": draw(9, 5, torch.float64, place.device, 1)}
    inputs["temperature"] = torch.tensor(temperature, dtype=torch.float64, device=place.device)
    fused = evaluate(lambda **leaves: dcl_loss(**leaves, **more, backend=place.backend), inputs)
    cpu = {k: v.cpu() for k, v in inputs.items()}
    expected = evaluate(lambda **leaves: by_views(*leaves.values(), *more.values()), cpu)
    for name in expected.names:
        assert relative_error(fused[name].cpu(), expected[name]) < 1e-12


def test_weights_average_to_one_and_carry_no_gradient():
    z1, z2 = (F.normalize(draw(seed=s), dim=1).requires_grad_() for s in (0, 1))
    weights = mises_fisher_weights(z1, z2)
    assert weights.shape == (6,) and not weights.requires_grad
    assert weights.mean().item() == pytest.approx(1)
    assert weights.argmin() == (z1 * z2).sum(1).argmax()  # who agrees already is weighed down
    sharp = mises_fisher_weights(z1, z2, sigma=0.1)
    assert sharp.min() < weights.min()


def test_modules_are_the_function():
    z1, z2 = draw(), draw(seed=1)
    with_weights = dcl_loss(z1, z2, 0.1, weight_fn=mises_fisher_weights, backend="reference")
    assert torch.equal(DCLLoss(backend="reference")(z1, z2), dcl_loss(z1, z2, 0.1, backend="reference"))
    assert torch.equal(DCLWLoss(backend="reference")(z1, z2), with_weights)
    assert torch.equal(DCLLoss(0.1, mises_fisher_weights, backend="reference")(z1, z2), with_weights)
    assert DCLWLoss(sigma=0.1, backend="reference")(z1, z2) != with_weights
    assert repr(DCLWLoss()) == "DCLWLoss(temperature=0.1)"
    assert [name for name, _ in DCLLoss(nn.Parameter(torch.tensor(0.5))).named_parameters()] == ["temperature"]


Z = draw()
BAD = [
    ((Z, draw(5)), {}, r"z2: expected shape \(6, 4\) as z1, got \(5, 4\)"),
    ((Z, Z.double()), {}, "z2: expected dtype torch.float32 as z1, got torch.float64"),
    ((Z, Z, 0.0), {}, r"Illegal temperature: abs\(0.0\) < 1e-08"),
    ((Z, Z), {"weight_fn": lambda a, b: a}, r"weight_fn: expected weights of shape \(6,\), got \(6, 4\)"),
]


@pytest.mark.parametrize(("arguments", "keywords", "message"), BAD, ids=[m[:60] for *_, m in BAD])
@pytest.mark.parametrize("function", [dcl_loss, dcl_reference])
def test_bad_input_gets_one_line_that_says_what_is_wrong(function, arguments, keywords, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(*arguments, **keywords)
