"""SupCon alone: values known by hand, labels and views of every kind, both forms, the module, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_kernels import SupConLoss, nt_xent_loss, sup_con_loss, sup_con_reference
from ssl_kernels.losses import classes
from ssl_kernels.testing import evaluate, relative_error, saved_bytes


def draw(n=6, d=4, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(n, d, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(seed))


FORMS = ["out", "in", "pairs"]
LABELS = {
    "two classes": [0, 1, 0, 1, 1, 0, 0, 1, 1],
    "one class": [5] * 9,
    "some alone": [0, 1, 2, 1, 0, 3, 4, 0, 5],
    "all alone": list(range(9)),
    "large and negative": [-(2**62), 2**62, 0, -(2**62), 0, 0, 2**62, -1, -1],
}


@pytest.mark.parametrize("function", [sup_con_loss, sup_con_reference])
@pytest.mark.parametrize("form", ["out", "in"])
def test_values_known_by_hand(function, form):
    eye = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    labels = torch.tensor([0, 1, 2] * 2)
    for temperature in (0.1, 1.0, -1.0):  # one positive against four negatives
        expected = math.log1p(4 * math.exp(-1 / temperature))
        assert function(eye, labels, temperature, form=form).item() == pytest.approx(expected, rel=1e-9)
    alike = torch.ones(6, 3)  # every row as likely as every other
    assert function(alike, labels // 2, 0.3, form=form).item() == pytest.approx(math.log(5), rel=1e-6)


def by_rows(features, labels, temperature, form):
    """The definition once more, a row at a time."""
    z = F.normalize(features, dim=1)
    terms = []
    for i in range(len(z)):
        s = {j: z[i] @ z[j] / temperature for j in range(len(z)) if j != i}
        positives = [s[j] for j in s if labels[j] == labels[i]]
        if positives:
            total = torch.stack(list(s.values())).logsumexp(0)
            shares = torch.stack(positives) - total
            if form == "pairs":
                others = [s[j] for j in s if labels[j] != labels[i]]
                terms += [torch.stack([p, *others]).logsumexp(0) - p for p in positives]
            else:
                terms.append(-shares.mean() if form == "out" else math.log(len(shares)) - shares.logsumexp(0))
    return torch.stack(terms).mean() if terms else features.sum() * 0 + temperature * 0


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.05, 0.5, -0.3])
def test_the_definition_by_rows(place, labels, form, temperature):
    inputs = {"features": draw(9, 5, torch.float64), "temperature": torch.tensor(temperature, dtype=torch.float64)}
    labels = torch.tensor(LABELS[labels])
    on = {k: v.to(place.device) for k, v in inputs.items()}
    by = {"labels": labels.to(place.device), "form": form}
    fused = evaluate(lambda **leaves: sup_con_loss(**leaves, **by, backend=place.backend), on)
    eager = evaluate(lambda **leaves: sup_con_reference(**leaves, **by), on)
    expected = evaluate(lambda **leaves: by_rows(labels=labels, form=form, **leaves), inputs)
    for name in expected.names:
        for got in (fused, eager):
            torch.testing.assert_close(got[name].cpu(), expected[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_no_positives_at_all_is_zero_with_a_graph(place, form, rows):
    z = draw(rows, 4, device=place.device).requires_grad_()
    loss = sup_con_loss(z, torch.arange(rows, device=place.device), form=form, backend=place.backend)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("form", FORMS)
def test_views_are_more_rows_of_the_same_samples(place, form):
    on = {"dtype": torch.float64, "device": place.device}
    views = [draw(7, 5, **on, seed=s) for s in range(3)]
    labels = torch.tensor([0, 1, 0, 2, 3, 3, 4], device=place.device)
    together = sup_con_loss(views, labels, 0.3, form=form, backend=place.backend)
    torch.testing.assert_close(together, sup_con_loss(torch.cat(views), labels.repeat(3), 0.3, form=form))
    # without labels a sample is a class: NT-Xent
    alone = sup_con_loss(views[:2], temperature=0.3, form=form, backend=place.backend)
    torch.testing.assert_close(alone, nt_xent_loss(*views[:2], 0.3, backend=place.backend))


@pytest.mark.parametrize("form", ["in", "pairs"])
def test_by_blocks(place, monkeypatch, form):
    inputs = {"features": draw(50, 5, torch.float64, place.device)}
    labels = torch.arange(50, device=place.device) % 7

    def run(**leaves):
        return sup_con_loss(labels=labels, form=form, **leaves, backend=place.backend)

    whole = evaluate(run, inputs)
    monkeypatch.setattr(classes, "BLOCK", 50 * 8)  # eight rows at a time
    blocks = evaluate(run, inputs)
    for name in whole.names:
        assert relative_error(blocks[name], whole[name]) < 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_saves_no_matrix(place, form):
    if place.backend == "reference":
        pytest.skip("the reference stores the matrix while it computes")
    labels = torch.arange(600, device=place.device) % 10
    inputs = {"features": draw(600, 16, device=place.device)}

    def call(function, **rest):
        return saved_bytes(lambda **leaves: function(labels=labels, form=form, **leaves, **rest), inputs)

    assert call(sup_con_loss, backend=place.backend) < 10 * 600 * 16 * 4 < call(sup_con_reference) / 4


@pytest.mark.parametrize("form", ["in", "pairs"])
def test_second_derivatives_by_blocks_are_refused(form):
    z = draw(6, 4).requires_grad_()
    loss = sup_con_loss(z, torch.arange(6) // 2, form=form, backend="reference")
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available.*_reference"):
        first.square().sum().backward()


def test_any_number_of_classes_in_one_graph(place):
    torch._dynamo.reset()
    compiled = torch.compile(sup_con_loss, fullgraph=True, backend="aot_eager")
    z = draw(12, 4, device=place.device)
    for count in (1, 3, 12):
        labels = torch.arange(12, device=place.device) % count
        expected = sup_con_loss(z, labels, backend=place.backend)
        torch.testing.assert_close(compiled(z, labels, backend=place.backend), expected)


@pytest.mark.parametrize("form", FORMS)
def test_rows_as_they_are(place, form):
    inputs = {"features": draw(9, 5, torch.float64, place.device)}
    by = {"labels": torch.arange(9, device=place.device) // 2, "form": form, "normalize": False}
    fused = evaluate(lambda **leaves: sup_con_loss(**leaves, **by, backend=place.backend), inputs)
    expected = evaluate(lambda **leaves: sup_con_reference(**leaves, **by), inputs)
    for name in expected.names:
        torch.testing.assert_close(fused[name], expected[name], rtol=1e-11, atol=1e-12)


def test_module_is_the_function():
    z, labels = draw(), torch.tensor([0, 1, 0, 1, 2, 2])
    for form in FORMS:
        loss = SupConLoss(0.3, form, backend="reference")
        assert torch.equal(loss(z, labels), sup_con_loss(z, labels, 0.3, form=form, backend="reference"))
        assert torch.equal(loss([z, z]), sup_con_loss([z, z], None, 0.3, form=form, backend="reference"))
    assert repr(SupConLoss()) == "SupConLoss(temperature=0.1, form='out')"
    assert [name for name, _ in SupConLoss(nn.Parameter(torch.tensor(0.5))).named_parameters()] == ["temperature"]


Z, Y = draw(), torch.arange(6)
BAD = [
    ((Z, Y[:5]), {}, ValueError, r"labels: expected shape \(6,\), one a row, got \(5,\)"),
    ((Z, Y[:, None]), {}, ValueError, r"labels: expected shape \(6,\), one a row, got \(6, 1\)"),
    ((Z, Y.float()), {}, TypeError, "labels: expected integers, got torch.float32"),
    ((Z, Y.to("meta")), {}, ValueError, "labels: expected device cpu as the rows, got meta"),
    ((Z, list(range(6))), {}, TypeError, "labels: expected a tensor of integers, got list"),
    (([Z, draw(5)], Y), {}, ValueError, r"features\[1\]: expected shape \(6, 4\) as features\[0\], got \(5, 4\)"),
    (([], Y), {}, ValueError, "features: expected at least one view, got none"),
    ((Z[None], Y), {}, ValueError, r"features: expected 2 dimensions \[N, D\], got shape \(1, 6, 4\)"),
    ((Z, Y, 0.0), {}, ValueError, r"Illegal temperature: abs\(0.0\) < 1e-08"),
    ((Z, Y), {"form": "both"}, ValueError, "form: expected 'out', 'in' or 'pairs', got 'both'"),
]


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
@pytest.mark.parametrize("function", [sup_con_loss, sup_con_reference])
def test_bad_input_gets_one_line_that_says_what_is_wrong(function, arguments, keywords, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        function(*arguments, **keywords)
