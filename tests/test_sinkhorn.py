"""Sinkhorn-Knopp against the papers' algorithm, on stored logits and on logits that are not; the heads that use it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import (
    FusedDINOHeadLoss,
    FusedIBOTHeadLoss,
    dino_loss,
    fused_dino_head_loss,
    fused_dino_head_reference,
    fused_ibot_head_loss,
    fused_ibot_head_reference,
    fused_sinkhorn_center,
    ibot_patch_loss,
    sinkhorn_center,
)
from ssl_kernels.backends import prototypes
from ssl_kernels.testing import evaluate, relative_error


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(draw(*shape, seed=seed), dim=-1)


def as_published(logits, temp, iterations):
    """Prototypes, then samples, scaled to equal sums; SwAV's code and DINOv2's, with the global shift they lack."""
    q = ((logits - logits.max()) / temp).exp().T
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


def assignments(logits, center, temp):
    return ((logits - center) / temp).softmax(1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize(("n", "k", "temp"), [(1, 1, 0.1), (7, 5, 0.05), (30, 100, 0.3), (64, 8, 1.0)])
def test_it_is_the_published_algorithm(place, n, k, temp, iterations):
    x, w = unit(n, 16).to(place.device), unit(k, 16, seed=1).to(place.device)
    logits = x @ w.T
    expected = as_published(logits, temp, iterations)
    stored = sinkhorn_center(logits, temp, iterations, backend=place.backend)
    unstored = fused_sinkhorn_center(x, w, temp, iterations, backend=place.backend)
    assert stored.shape == (1, k) and stored.mean().abs() < 1e-12
    for center in (stored, unstored):
        torch.testing.assert_close(assignments(logits, center, temp), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_temperatures_at_which_exponentials_overflow(place, dtype):
    logits = draw(20, 30, scale=10).to(dtype).to(place.device)  # over 0.01: thousands
    center = sinkhorn_center(logits, 0.01, 5, backend=place.backend)
    assert center.dtype == torch.float32 and center.isfinite().all()
    exact = sinkhorn_center(logits.double(), 0.01, 5, backend="reference")
    torch.testing.assert_close(center.double(), exact, rtol=1e-5, atol=1e-4)


def test_many_iterations_give_prototypes_equal_sums(place):
    logits = draw(60, 10, scale=0.3).to(place.device)
    p = assignments(logits, sinkhorn_center(logits, 0.1, 300, backend=place.backend), 0.1)
    torch.testing.assert_close(p.sum(0), torch.full_like(p[0], 6.0))


def test_a_constant_added_to_all_logits_changes_nothing(place):
    logits = draw(9, 12).to(place.device)
    expected = sinkhorn_center(logits, 0.1, backend=place.backend)
    torch.testing.assert_close(sinkhorn_center(logits + 50, 0.1, backend=place.backend), expected)


def test_as_the_teacher_of_dino_and_ibot(place):
    f, g = draw(3 * 6, 20).to(place.device), draw(2 * 6, 20, seed=1).to(place.device)
    each = torch.cat([sinkhorn_center(view, 0.05, backend=place.backend) for view in g.chunk(2)])  # as SwAV has it
    got = dino_loss(f, g, 0.1, 0.05, each, backend=place.backend)
    p = torch.stack([as_published(view, 0.05, 3) for view in g.chunk(2)])
    logs = (f.view(3, 6, 20) / 0.1).log_softmax(2)
    expected = -torch.einsum("tbk,vbk,tv->", p, logs, 1 - torch.eye(2, 3).to(p)) / (4 * 6)
    torch.testing.assert_close(got, expected)

    mask = torch.ones(3, 6, dtype=torch.bool, device=place.device)
    center = sinkhorn_center(f, 0.07, backend=place.backend)
    got = ibot_patch_loss(f, f, mask, 0.1, 0.07, center, backend=place.backend)
    expected = -(as_published(f, 0.07, 3) * (f / 0.1).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(place, dtype):
    ops, (x, w) = torch.ops.ssl_kernels, (unit(n, 5, seed=n).to(dtype).to(place.device) for n in (6, 7))
    for dim, size in ((0, 6), (1, 7)):
        bias = torch.zeros(size, device=place.device)
        for given in (None, bias):
            torch.library.opcheck(ops.prototype_lse.default, (x, w, given, 2.0, dim, place.backend))
            torch.library.opcheck(ops.biased_lse.default, (x @ w.T, given, 2.0, dim, place.backend))


def test_compiles_in_one_graph():
    logits = draw(8, 9)
    compiled = torch.compile(sinkhorn_center, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, 0.1), sinkhorn_center(logits, 0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_temp": 0.0}, "teacher_temp: expected a number above 0, got 0.0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        (
            {"teacher_logits": torch.zeros(0, 3)},
            "teacher_logits: expected at least one row and one column",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sinkhorn_center(**{"teacher_logits": torch.zeros(2, 3)} | arguments)


# ---------------------------------------------------------------------------------------------- heads, never stored
@pytest.mark.parametrize(("students", "teachers", "batch", "k"), [(2, 2, 3, 5), (4, 2, 2, 600), (3, 1, 4, 2)])
def test_head_and_loss_together_are_the_two(place, students, teachers, batch, k):
    inputs = {"x": unit(students * batch, 6), "w": unit(k, 6, seed=2)}
    t, v, c = unit(teachers, batch, 6, seed=1), unit(k, 6, seed=3), draw(k, seed=4, scale=0.1)
    inputs, (t, v, c) = {n: x.to(place.device) for n, x in inputs.items()}, (x.to(place.device) for x in (t, v, c))

    def fused(x, w):
        return fused_dino_head_loss(x, t, w, 0.1, 0.05, c, teacher_prototypes=v, backend=place.backend)

    def plain(x, w):
        logits = (x @ w.T).view(students, batch, k)
        return dino_loss(logits, t @ v.T, 0.1, 0.05, c, backend="reference")

    got, expected = evaluate(fused, inputs), evaluate(plain, inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [20, 36, 256])  # beside the logits of 20 rows there is place for none, some, all
def test_few_rows_wait_for_backward_where_the_gradient_will_be(place, monkeypatch, width):
    if place.backend == "reference":
        pytest.skip("it stores everything")
    products, logits = [], prototypes.Blocks.logits
    monkeypatch.setattr(prototypes.Blocks, "logits", lambda *args: products.append(args) or logits(*args))
    monkeypatch.setattr(prototypes, "BLOCK", dict.fromkeys(prototypes.BLOCK, 20 * 1000))
    x, w = (unit(n, width, seed=n).to(place.device).requires_grad_() for n in (10, 5000))
    views, teacher = x.view(2, 5, width), unit(2, 5, width, seed=1).to(place.device)
    loss = fused_dino_head_loss(views, teacher, w, backend=place.backend)
    expected = torch.autograd.grad(fused_dino_head_reference(views, teacher, w), (x, w))
    sweep = len(products)
    for sweeps in (1, 2, 3):  # what waited is used up by the first: in the same graph again there are others
        for got, right in zip(torch.autograd.grad(loss, (x, w), retain_graph=True), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)
        assert (len(products) == sweep) == (sweeps == 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_patches_from_features(place, dtype):
    mask = (torch.arange(20).view(4, 5) % 3 > 0).to(place.device)
    m = int(mask.sum())
    x, t, w = (unit(n, 8, seed=n).to(dtype).to(place.device) for n in (m, m, 700))
    c = draw(700, scale=0.1).to(place.device)
    inputs = {"x_student": x, "x_teacher": t + 0, "prototypes": w, "mask": mask, "center": c}
    asking = ["x_student", "prototypes"]
    got = evaluate(lambda **i: fused_ibot_head_loss(**i, backend=place.backend), inputs, asking)
    wide = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    expected = evaluate(fused_ibot_head_reference, wide, asking)
    for name in expected.names:
        assert relative_error(got[name], expected[name]) < (1e-11 if dtype == torch.float64 else 6e-3), name


def test_the_centre_is_the_mean_of_logits_nobody_stored():
    x, w, mask = unit(4, 5, 6).float(), unit(9, 6, seed=1).float(), torch.ones(2, 5, dtype=torch.bool)
    loss, patches = FusedDINOHeadLoss(9, center_momentum=0.75), FusedIBOTHeadLoss(9, center_momentum=0.75)
    first = loss(list(x[:2]), list(x), w, teacher_temp=0.1)
    torch.testing.assert_close(first, fused_dino_head_reference(list(x), list(x[:2]), w, 0.1, 0.1))
    patches(x[0].repeat(2, 1), x[1].repeat(2, 1), w, mask)
    for got, seen in ((loss.center, x[:2]), (patches.center.value, x[0])):
        torch.testing.assert_close(got.flatten(), 0.25 * (seen @ w.T).flatten(0, -2).mean(0))
    assert loss(list(x[:2] * torch.nan), list(x), w, teacher_temp=0.1).isnan()
    assert loss.center.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prototypes": torch.zeros(0, 6)},
            "prototypes: expected at least one row and one column",
        ),
        ({"prototypes": torch.zeros(9, 5)}, "prototypes: expected width 6 as student, got 5"),
        (
            {"teacher_prototypes": torch.zeros(8, 6)},
            r"teacher_prototypes: expected shape \(9, 6\) as prototypes",
        ),
        ({"x_student": torch.zeros(2, 3, 6)[:, :2]}, r"x_student\[0\]: expected 3 rows, got 2"),
        (
            {"x_student": [torch.zeros(3, 6), torch.zeros(3, 5)]},
            r"x_student\[1\]: expected width 6 as x_teacher\[0\], got 5",
        ),
        ({"center": torch.zeros(4)}, r"center: expected 9 elements, or \[2, 9\], got shape \(4,\)"),
        ({"teacher_temp": 0.0}, "teacher_temp: expected a number above 0, got 0.0"),
    ],
)
def test_bad_heads(arguments, message):
    given = {"x_student": torch.zeros(4, 3, 6), "x_teacher": torch.zeros(2, 3, 6), "prototypes": torch.zeros(9, 6)}
    with pytest.raises(ValueError, match=f"^{message}"):
        fused_dino_head_loss(**given | arguments)
