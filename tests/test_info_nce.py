"""InfoNCE alone: values known by hand, negatives in every form, the module, and what bad input gets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import InfoNCELoss, info_nce_loss, info_nce_reference
from ssl_kernels.testing import evaluate, relative_error, saved_bytes


def draw(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(seed))


def wide(place, n=6, d=5, negatives=None):
    on = {"dtype": torch.float64, "device": place.device}
    inputs = {"query": draw(n, d, **on), "positive": draw(n, d, **on, seed=1)}
    inputs["temperature"] = torch.tensor(0.2, **on)
    return inputs if negatives is None else inputs | {"negatives": draw(*negatives, d, **on, seed=2)}


def same(place, inputs, **rest):
    fused = evaluate(lambda **leaves: info_nce_loss(**leaves, **rest, backend=place.backend), inputs)
    expected = evaluate(lambda **leaves: info_nce_reference(**leaves, **rest), inputs)
    for name in expected.names:
        assert relative_error(fused[name], expected[name]) < 1e-12, name
    return fused


@pytest.mark.parametrize("function", [info_nce_loss, info_nce_reference])
def test_values_known_by_hand(function):
    eye = torch.eye(5, dtype=torch.float64)
    for temperature in (0.1, 1.0, -1.0):
        own = math.exp(-1 / temperature)  # the positive against ones
        assert function(eye, 2 * eye, None, temperature).item() == pytest.approx(math.log1p(4 * own), rel=1e-12)
        two = function(eye[:3], 2 * eye[:3], eye[3:], temperature).item()
        assert two == pytest.approx(math.log1p(2 * own), rel=1e-12)
        each = function(eye[:3], eye[:3], eye[3:].expand(3, 2, 5), temperature).item()
        assert each == pytest.approx(math.log1p(2 * own), rel=1e-12)
    assert function(eye[:1], -eye[:1]).item() == 0  # no negatives at all
    assert function(eye, eye, eye[:0]).item() == 0 and function(eye, eye, eye[:, None][:, :0]).item() == 0


@pytest.mark.parametrize("negatives", [(1,), (7,), (130,), (6, 1), (6, 9), (0,), (6, 0)], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_negatives_of_every_form(place, negatives, normalize):
    same(place, wide(place, negatives=negatives), normalize=normalize)


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_more_keys_than_queries(place, offset):
    inputs = wide(place)
    inputs["positive"] = draw(14, 5, dtype=torch.float64, device=place.device, seed=3)
    same(place, inputs, offset=offset)


def test_a_queue_is_neither_kept_nor_given_a_gradient(place):
    inputs = wide(place, negatives=(40,))
    queue = inputs.pop("negatives")
    fused = evaluate(lambda **leaves: info_nce_loss(negatives=queue, **leaves, backend=place.backend), inputs)
    expected = evaluate(lambda **leaves: info_nce_reference(negatives=queue, **leaves), inputs)
    for name in expected.names:
        assert relative_error(fused[name], expected[name]) < 1e-12, name
    # so it may change before backward
    query = inputs["query"].clone().requires_grad_()
    loss = info_nce_loss(query, inputs["positive"], queue, 0.2, backend=place.backend)
    queue.zero_()
    loss.backward()
    alone = info_nce_loss(
        query, inputs["positive"], wide(place, negatives=(40,))["negatives"], 0.2, backend=place.backend
    )
    torch.testing.assert_close(query.grad, torch.autograd.grad(alone, query)[0])


def test_memory_does_not_grow_with_the_queue(place):
    if place.backend == "reference":
        pytest.skip("the reference stores the matrix while it computes")

    def kept(k):
        queue = draw(k, 16, device=place.device, seed=2)
        inputs = {"query": draw(8, 16, device=place.device), "positive": draw(8, 16, device=place.device, seed=1)}
        return saved_bytes(lambda **leaves: info_nce_loss(negatives=queue, **leaves, backend=place.backend), inputs)

    assert kept(5000) == kept(50)


def test_a_trained_model_keeps_its_digits_beside_a_queue(place):
    q = draw(64, 32, device=place.device)
    inputs = {"query": q, "positive": q + 0.1 * draw(64, 32, device=place.device, seed=1)}
    queue = draw(500, 32, device=place.device, seed=2)
    fused = evaluate(
        lambda **leaves: info_nce_loss(negatives=queue, temperature=0.02, **leaves, backend=place.backend), inputs
    )
    wide_inputs = {k: v.double() for k, v in inputs.items()}
    truth = evaluate(
        lambda **leaves: info_nce_loss(negatives=queue.double(), temperature=0.02, **leaves, backend="reference"),
        wide_inputs,
    )
    eager = evaluate(lambda **leaves: info_nce_reference(negatives=queue, temperature=0.02, **leaves), inputs)
    for name in truth.names:
        assert relative_error(fused[name], truth[name]) < 2e-5
    assert relative_error(eager["query"], truth["query"]) > 1e-3  # what was gained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_queue_in_16_bits(place, dtype):
    inputs = {
        "query": draw(20, 32, device=place.device).to(dtype),
        "positive": draw(20, 32, device=place.device, seed=1).to(dtype),
    }
    queue = F.normalize(draw(100, 32, device=place.device, seed=2), dim=1).to(dtype)
    fused = evaluate(lambda **leaves: info_nce_loss(negatives=queue, **leaves, backend=place.backend), inputs)
    truth = evaluate(
        lambda **leaves: info_nce_reference(negatives=queue.double(), **leaves),
        {k: v.double() for k, v in inputs.items()},
    )
    assert relative_error(fused.loss, truth.loss) < 1e-6
    for name in inputs:
        assert relative_error(fused[name], truth[name]) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("negatives", [None, (7,), (6, 4)], ids=str)
def test_compiles_in_one_graph(place, negatives):
    torch._dynamo.reset()
    inputs = wide(place, negatives=negatives)
    compiled = torch.compile(info_nce_loss, fullgraph=True, backend="aot_eager")
    expected = evaluate(lambda **leaves: info_nce_loss(**leaves, backend=place.backend), inputs)
    got = evaluate(lambda **leaves: compiled(**leaves, backend=place.backend), inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name])


def test_module_is_the_function():
    q, k, n = draw(6, 4), draw(6, 4, seed=1), draw(9, 4, seed=2)
    loss = InfoNCELoss(0.3, backend="reference")
    assert torch.equal(loss(q, k), info_nce_loss(q, k, None, 0.3, backend="reference"))
    assert torch.equal(loss(q, k, n), info_nce_loss(q, k, n, 0.3, backend="reference"))
    assert repr(loss) == "InfoNCELoss(temperature=0.3)" and InfoNCELoss().temperature == 0.1


Q = draw(6, 4)
BAD = [
    ((Q, Q[:5]), {}, ValueError, "positive: expected at least 6 rows for 6 of query, got 5"),
    ((Q, Q), {"offset": 2}, ValueError, "positive: expected at least 8 rows for 6 of query, got 6"),
    ((Q, draw(8, 4), Q), {}, ValueError, "positive: expected 6 rows for 6 of query, got 8"),
    ((Q, Q, Q), {"offset": 1}, ValueError, "offset: expected 0 beside negatives, got 1"),
    ((Q, draw(6, 3)), {}, ValueError, "positive: expected width 4 as query, got 3"),
    ((Q, Q, draw(9, 3)), {}, ValueError, "negatives: expected width 4 as query, got 3"),
    ((Q, Q, draw(6, 9, 3)), {}, ValueError, r"negatives: expected shape \[K, 4\] or \[6, K, 4\], got \(6, 9, 3\)"),
    ((Q, Q, draw(5, 9, 4)), {}, ValueError, r"negatives: expected shape \[K, 4\] or \[6, K, 4\], got \(5, 9, 4\)"),
    ((Q, Q, draw(4)), {}, ValueError, r"negatives: expected shape \[K, 4\] or \[6, K, 4\], got \(4,\)"),
    ((Q, Q, draw(6, 9, 4).long()), {}, TypeError, "negatives: expected float32, float64, bfloat16 or float16, got .*"),
    ((Q, Q, draw(9, 4).half()), {}, ValueError, "negatives: expected dtype torch.float32 as query, got .*16"),
    ((Q, Q, draw(6, 9, 4).half()), {}, ValueError, "negatives: expected dtype torch.float32 as query, got .*16"),
    ((Q, Q, Q.to("meta")), {}, ValueError, "negatives: expected device cpu as query, got meta"),
    ((Q, Q, [Q]), {}, TypeError, "negatives: expected a tensor, got list"),
    ((Q, Q, None, 0.0), {}, ValueError, r"Illegal temperature: abs\(0.0\) < 1e-08"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
@pytest.mark.parametrize("function", [info_nce_loss, info_nce_reference])
def test_bad_input_gets_one_line_that_says_what_is_wrong(function, arguments, keywords, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        function(*arguments, **keywords)
