"""NT-Xent alone: values known by hand, more views, the module, and what bad input gets."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from ssl_kernels import NTXentLoss, nt_xent_loss, nt_xent_reference
from ssl_kernels.testing import evaluate, relative_error


def draw(n=6, d=4, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(n, d, dtype=dtype, device=device, generator=generator)


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("function", [nt_xent_loss, nt_xent_reference])
def test_values_known_by_hand(function):
    eye = torch.eye(4, dtype=torch.float64)
    # both views alike, samples orthogonal: the positive is exp(1/tau) against 2N - 2 ones
    for temperature in (0.1, 0.5, 1.0, -1.0):
        expected = math.log(1 + 6 * math.exp(-1 / temperature))
        assert function(eye, 3 * eye, temperature).item() == pytest.approx(expected, rel=1e-12)
    # every row the same: 2N - 1 equal logits
    assert function(torch.ones(4, 3), torch.ones(4, 3), 0.07).item() == pytest.approx(math.log(7), rel=1e-6)
    # one sample: its positive is all there is
    assert function(draw(1), draw(1, seed=1)).item() == 0


def test_default_temperature_is_one_half():
    z1, z2 = draw(), draw(seed=1)
    assert torch.equal(nt_xent_loss(z1, z2), nt_xent_loss(z1, z2, 0.5))
    assert torch.equal(NTXentLoss()(z1, z2), nt_xent_loss(z1, z2, 0.5))


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.05, 0.5, -0.3])
def test_more_views(place, views, temperature):
    z = [draw(9, 7, torch.float64, place.device, seed) for seed in range(views)]
    named = {f"z{k}": t for k, t in enumerate(z)} | {"tau": torch.tensor(temperature).double().to(place.device)}
    fused = evaluate(lambda tau, **z: _call(nt_xent_loss, z, tau, backend=place.backend), named)
    expected = evaluate(lambda tau, **z: _call(nt_xent_reference, z, tau), named)
    by_pairs = evaluate(_average_over_pairs, named)
    for name in expected.names:
        assert relative_error(fused[name], expected[name]) < 1e-12
        assert relative_error(by_pairs[name], expected[name]) < 1e-12


def _call(function, z, tau, **rest):
    z1, z2, *more = z.values()
    return function(z1, z2, tau, more=more, **rest)


def _average_over_pairs(tau, **views):
    """The definition once more, a row and a pair at a time."""
    z = nn.functional.normalize(torch.stack(list(views.values())), dim=-1)  # [V, N, D]
    count, n, _ = z.shape
    terms = []
    for a in range(count):
        for i in range(n):
            others = torch.cat([z[b] if b != a else torch.cat([z[b, :i], z[b, i + 1 :]]) for b in range(count)])
            denominator = (others @ z[a, i] / tau).logsumexp(0)
            terms += [denominator - z[a, i] @ z[b, i] / tau for b in range(count) if b != a]
    return torch.stack(terms).mean()


def test_a_trained_model_with_many_views(place):
    z = draw(64, 32, device=place.device)
    views = {f"z{k}": z + 0.05 * draw(64, 32, device=place.device, seed=k) for k in range(1, 5)}
    fused = evaluate(lambda **z: _call(nt_xent_loss, z, 0.05, backend=place.backend), views)
    eager = evaluate(lambda **z: _call(nt_xent_reference, z, 0.05), views)
    truth = evaluate(lambda **z: _call(nt_xent_reference, z, 0.05), {name: t.double() for name, t in views.items()})
    # the positives compete with one another, so their forces nearly cancel: as in eager, no more
    for name in truth.names:
        assert relative_error(fused[name], truth[name]) <= 2 * max(relative_error(eager[name], truth[name]), 1e-7)


def test_one_view_given_twice():
    z = draw(5, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nt_xent_loss(z, z, 0.3), z)
    assert torch.autograd.gradcheck(lambda z: nt_xent_loss(z, 2 * z, 0.3, more=[z]), z)


def test_reference_has_second_derivatives():
    z1, z2 = draw(3, 2, torch.float64).requires_grad_(), draw(3, 2, torch.float64, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(nt_xent_reference, (z1, z2))


# --------------------------------------------------------------------------------------------------------------- module
def test_module_is_the_function():
    z = [draw(seed=seed) for seed in range(4)]
    loss = NTXentLoss(0.2, backend="reference")
    assert torch.equal(loss(*z[:2]), nt_xent_loss(*z[:2], 0.2, backend="reference"))
    assert torch.equal(loss(*z), nt_xent_loss(*z[:2], 0.2, more=z[2:], backend="reference"))
    assert repr(loss) == "NTXentLoss(temperature=0.2)"
    assert not list(loss.parameters()) and not loss.state_dict()


def test_module_learns_its_temperature():
    loss = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    z = draw(16, 8)
    first = loss(z, z + 0.01 * draw(16, 8, seed=1))
    first.backward()
    optimizer.step()
    assert loss.temperature.item() < 0.5 and loss(z, z) < first  # aligned views ask for a sharper softmax


@pytest.mark.parametrize("temperature", [0.5, nn.Parameter(torch.tensor(0.3))], ids=["float", "parameter"])
def test_module_can_be_copied_saved_and_moved(temperature):
    loss, z1, z2 = NTXentLoss(temperature), draw(), draw(seed=1)
    expected = loss(z1, z2)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(z1, z2), expected)
        assert all(p is not q for p, q in zip(other.parameters(), loss.parameters(), strict=True))
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    buffer.seek(0)
    fresh = NTXentLoss(nn.Parameter(torch.tensor(9.0)) if isinstance(temperature, nn.Parameter) else temperature)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(z1, z2), expected)
    wide = copy.deepcopy(loss).double()(z1.double(), z2.double())
    assert wide.dtype == torch.float64 and wide.item() == pytest.approx(expected.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input
Z = draw()
SHAPE = r"\(6, 4\)"
BAD = [
    ((Z, draw(5)), {}, ValueError, rf"z2: expected shape {SHAPE} as z1, got \(5, 4\)"),
    ((Z, draw(6, 3)), {}, ValueError, rf"z2: expected shape {SHAPE} as z1, got \(6, 3\)"),
    ((Z, Z[0]), {}, ValueError, r"z2: expected 2 dimensions \[N, D\], got shape \(4,\)"),
    ((Z[None], Z[None]), {}, ValueError, r"z1: expected 2 dimensions \[N, D\], got shape \(1, 6, 4\)"),
    ((torch.tensor(1.0), Z), {}, ValueError, r"z1: expected 2 dimensions \[N, D\], got shape \(\)"),
    ((Z[:0], Z[:0]), {}, ValueError, r"z1: expected at least one row and one column, got shape \(0, 4\)"),
    ((Z[:, :0], Z[:, :0]), {}, ValueError, r"z1: expected at least one row and one column, got shape \(6, 0\)"),
    ((Z.long(), Z.long()), {}, TypeError, "z1: expected float32, float64, bfloat16 or float16, got torch.int64"),
    ((Z, Z > 0), {}, TypeError, "z2: expected float32, float64, bfloat16 or float16, got torch.bool"),
    ((Z + 0j, Z + 0j), {}, TypeError, "z1: expected float32, float64, bfloat16 or float16, got torch.complex64"),
    ((Z, Z.double()), {}, ValueError, "z2: expected dtype torch.float32 as z1, got torch.float64"),
    ((Z.bfloat16(), Z.half()), {}, ValueError, "z2: expected dtype torch.bfloat16 as z1, got torch.float16"),
    ((Z, Z.to("meta")), {}, ValueError, "z2: expected device cpu as z1, got meta"),
    ((Z, None), {}, TypeError, "z2: expected a tensor, got NoneType"),
    ((Z.numpy(), Z), {}, TypeError, "z1: expected a tensor, got ndarray"),
    ((Z, Z), {"more": [draw(5)]}, ValueError, rf"more\[0\]: expected shape {SHAPE} as z1, got \(5, 4\)"),
    ((Z, Z), {"more": [Z, Z.half()]}, ValueError, r"more\[1\]: expected dtype torch.float32 as z1, got torch.float16"),
    ((Z, Z, 0.0), {}, ValueError, r"Illegal temperature: abs\(0.0\) < 1e-08"),
    ((Z, Z, 9e-9), {}, ValueError, r"Illegal temperature: abs\(9e-09\) < 1e-08"),
    ((Z, Z, -9e-9), {}, ValueError, r"Illegal temperature: abs\(-9e-09\) < 1e-08"),
    ((Z, Z, math.nan), {}, ValueError, r"Illegal temperature: abs\(nan\) < 1e-08"),
    ((Z, Z, torch.tensor(0.0)), {}, ValueError, r"Illegal temperature: abs\(0.0\) < 1e-08"),
    ((Z, Z, torch.tensor(math.nan)), {}, ValueError, r"Illegal temperature: abs\(nan\) < 1e-08"),
    ((Z, Z, torch.ones(2)), {}, ValueError, r"temperature: expected a number or one element, got shape \(2,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
@pytest.mark.parametrize("function", [nt_xent_loss, nt_xent_reference])
def test_bad_input_gets_one_line_that_says_what_is_wrong(function, arguments, keywords, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        function(*arguments, **keywords)


@pytest.mark.parametrize("temperature", [0.0, 1e-9, math.nan, torch.ones(2)], ids=str)
def test_module_refuses_a_bad_temperature_when_made(temperature):
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature)


def test_a_temperature_just_above_the_limit_is_served(place):
    z1, z2 = draw(5, 3, device=place.device), draw(5, 3, device=place.device, seed=1)
    loss = nt_xent_loss(z1, z2, 1e-8, backend=place.backend)
    torch.testing.assert_close(loss, nt_xent_reference(z1.double(), z2.double(), 1e-8).float())


def test_mixed_dtypes_in_a_compiled_autocast_region():
    torch._dynamo.reset()
    compiled = torch.compile(nt_xent_loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(Z.bfloat16(), Z), nt_xent_loss(Z.bfloat16(), Z))
