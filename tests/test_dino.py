"""DINO and iBOT on given logits: the papers' formulas entry by entry, the centre, what must not change, bad input."""

from __future__ import annotations

import math
import platform
import sys

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import Center, DINOLoss, IBOTPatchLoss, dino_loss, ibot_patch_loss
from ssl_kernels.backends.cpu import native
from ssl_kernels.ops import view_cross_entropy
from ssl_kernels.testing import evaluate, peak_extra_bytes, relative_error


def draw(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def softmax(row, temp):
    e = [math.exp(v / temp) for v in row]
    return [v / sum(e) for v in e]


def entry_by_entry(student, teacher, center, student_temp, teacher_temp):
    """Equation 2 and algorithm 1 of the paper in plain Python; views are lists of rows."""
    total, pairs = 0.0, 0
    for t, rows_t in enumerate(teacher):
        for v, rows_v in enumerate(student):
            if t == v:
                continue
            pairs += 1
            for g, f in zip(rows_t, rows_v, strict=True):
                p = softmax([a - c for a, c in zip(g, center, strict=True)], teacher_temp)
                q = softmax(f, student_temp)
                total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total / (pairs * len(teacher[0]))


@pytest.mark.parametrize(
    ("students", "teachers", "batch", "k"), [(2, 2, 3, 5), (5, 2, 2, 7), (3, 1, 4, 2), (2, 4, 1, 6)]
)
def test_dino_is_the_paper(place, students, teachers, batch, k):
    f, g, c = draw(students, batch, k), draw(teachers, batch, k, seed=1), draw(k, seed=2)
    expected = entry_by_entry(f.tolist(), g.tolist(), c.tolist(), 0.3, 0.2)
    for forms in (list, torch.Tensor.contiguous):
        views = [forms(x.to(place.device)) for x in (f, g)]
        got = dino_loss(*views, 0.3, 0.2, c.to(place.device), backend=place.backend)
        assert got.item() == pytest.approx(expected, rel=1e-12)


def test_views_one_below_the_other_are_views(place):
    f, g = draw(5, 3, 8).to(place.device), draw(2, 3, 8, seed=1).to(place.device)
    apart = evaluate(lambda f: dino_loss(list(f), list(g), backend=place.backend), {"f": f})
    below = evaluate(lambda f: dino_loss(f.flatten(0, 1), g.flatten(0, 1), backend=place.backend), {"f": f})
    torch.testing.assert_close(apart["f"], below["f"])
    torch.testing.assert_close(apart.loss, below.loss)
    across = f.transpose(0, 1).contiguous().transpose(0, 1)  # no view of it is contiguous with the next
    torch.testing.assert_close(dino_loss(across, g, backend=place.backend), apart.loss)


def test_a_gradient_reaches_the_teacher_only_where_asked(place):
    inputs = {"f": draw(3, 2, 6).to(place.device), "g": draw(2, 2, 6, seed=1).to(place.device)}
    c = draw(6, seed=2).to(place.device)

    def loss(f, g, **rest):
        return dino_loss(f, g, 0.2, 0.1, c, backend=place.backend, **rest)

    assert not evaluate(loss, inputs)["g"].any()
    got = evaluate(lambda f, g: loss(f, g, teacher_gradient=True), inputs)
    expected = evaluate(
        lambda f, g: (
            -torch.einsum(
                "tbk,vbk,tv->", ((g - c) / 0.1).softmax(2), (f / 0.2).log_softmax(2), 1 - torch.eye(2, 3).to(g)
            )
            / (4 * 2)
        ),
        inputs,
    )
    for name in ("loss", "f", "g"):
        assert relative_error(got[name], expected[name]) < 1e-12


def test_probabilities_of_the_teacher_as_they_are(place):
    f, p = draw(3 * 4, 9).to(place.device), draw(2 * 4, 9, seed=1).softmax(1).mul(2).to(place.device)
    given = {"batch": 4, "student_temp": 0.5, "teacher_temp": None}
    weight = draw(4, seed=3).to(place.device)
    for same in (False, True):
        pairs = torch.ones(2, 3) if same else 1 - torch.eye(2, 3)

        def plain(f, p, pairs=pairs):
            logs = (f / 0.5).log_softmax(1)
            return -torch.einsum("tbk,vbk,tv,b->", p.view(2, 4, 9), logs.view(3, 4, 9), pairs.to(p), weight)

        def ours(f, p, same=same):
            return (weight * view_cross_entropy([f], [p], same=same, backend=place.backend, **given)).sum()

        got, expected = evaluate(ours, {"f": f, "p": p}), evaluate(plain, {"f": f, "p": p})
        for name in expected.names:
            assert relative_error(got[name], expected[name]) < 1e-12, (name, same)


# ------------------------------------------------------------------------------------------------- what must not change
@pytest.mark.parametrize("temps", [(1.0, 1.0), (0.1, 0.04), (0.01, 0.01)])
@pytest.mark.parametrize("by", [-30.0, 100.0])
def test_a_constant_added_to_all_logits_changes_nothing(place, temps, by):
    f, g = (draw(n, 3, 40, seed=n, dtype=torch.float32).to(place.device) for n in (4, 2))
    # to steps of 2^-8, so that the sum with the constant is exact
    f, g = ((x * 256).round() / 256 for x in (f, g))

    def loss(f, g):
        return dino_loss(f, g, *temps, backend=place.backend)

    expected, got = (evaluate(loss, {"f": f + move, "g": g - move}) for move in (0.0, by))
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["f"], expected["f"], rtol=1e-4, atol=1e-6)


def test_a_single_prototype_is_certain(place):
    f, g = draw(4, 3, 1).to(place.device), draw(2, 3, 1).to(place.device)
    got = evaluate(lambda f: dino_loss(f, g, backend=place.backend), {"f": f})
    assert got.loss == 0 and not got["f"].any()


def test_views_all_equal_have_the_entropy_as_their_loss_and_no_gradient(place):
    one = draw(3, 20, dtype=torch.float32).to(place.device)
    teacher, views = one.expand(2, 3, 20), {"f": one.expand(6, 3, 20)}
    got = evaluate(lambda f: dino_loss(f, teacher, 0.1, 0.1, backend=place.backend), views)
    p = (one.double() / 0.1).softmax(1)
    torch.testing.assert_close(got.loss.double(), -(p * p.log()).sum(1).mean(), rtol=1e-5, atol=1e-6)
    assert got["f"].abs().max() < 1e-6


@pytest.mark.parametrize("k", [300, 3000])
@pytest.mark.parametrize("hidden", [0, 200, 1500])
def test_logits_far_apart_are_as_exact_as_eager(place, k, hidden):
    """Temperatures of 0.01: logits of hundreds, probabilities of zero and one; the largest logits not the first."""
    f, g = (draw(n, 4, k, seed=n, dtype=torch.float32, scale=3.0).to(place.device) for n in (3, 2))
    g[:, :, : hidden if hidden < k else 0] = -torch.inf
    f[:, 1:, -1] += 100
    got = evaluate(lambda f: dino_loss(f, g, 0.01, 0.01, backend=place.backend), {"f": f})
    exact = evaluate(lambda f: dino_loss(f, g.double(), 0.01, 0.01, backend="reference"), {"f": f.double()})
    assert relative_error(got.loss, exact.loss) < 1e-6 and relative_error(got["f"], exact["f"]) < 1e-5


# ----------------------------------------------------------------------------------------------------------- the centre
def test_the_centre_over_several_steps(place):
    k, loss = 7, DINOLoss(7, 0.04, 0.07, 3, center_momentum=0.8, backend=place.backend).to(place.device)
    center = torch.zeros(k, dtype=torch.float64)
    for epoch in range(5):
        f, g = ([draw(3, k, seed=10 * epoch + v) for v in range(n)] for n in (4, 2))
        temp = (0.04, 0.055, 0.07, 0.07, 0.07)[epoch]
        expected = entry_by_entry(*([x.tolist() for x in views] for views in (f, g)), center.tolist(), 0.1, temp)
        got = loss([x.float().to(place.device) for x in g], [x.float().to(place.device) for x in f], epoch=epoch)
        assert got.item() == pytest.approx(expected, rel=2e-5)
        center = 0.8 * center + 0.2 * torch.cat(g).mean(0)
        assert loss.center.shape == (1, 1, k)
        torch.testing.assert_close(loss.center.flatten().cpu().double(), center, rtol=1e-5, atol=1e-6)
    assert set(loss.state_dict()) == {"center"}


def test_a_step_that_failed_leaves_the_centre_alone():
    loss = DINOLoss(5)
    f, g = [draw(2, 5, seed=v) for v in range(2)], [draw(2, 5, seed=v + 2) for v in range(2)]
    loss(g, f, teacher_temp=0.05)
    before = loss.center.clone()
    assert before.any()
    assert loss([g[0], g[1] * torch.nan], f, teacher_temp=0.05).isnan()
    with pytest.raises(ValueError, match="student_logits"):
        loss(g, [x[:1] for x in f], teacher_temp=0.05)
    with pytest.raises(ValueError, match="teacher_temp: expected a number above 0, got 0.0"):
        loss(g, f, teacher_temp=0.0)
    torch.testing.assert_close(loss.center, before, rtol=0, atol=0)


def test_backward_comes_after_the_centre_has_moved():
    """In float16, whose gradient is formed in backward, with the centre of its own step."""
    loss, f, g = DINOLoss(5, center_momentum=0.0), draw(2, 3, 5, dtype=torch.float16), draw(2, 3, 5, seed=1)
    f.requires_grad_()
    loss(list(g.half()), list(f), teacher_temp=0.1).backward()
    expected = evaluate(lambda f: dino_loss(f, g.half().float(), 0.1, 0.1), {"f": f.detach().float()})
    torch.testing.assert_close(f.grad.float(), expected["f"], rtol=2e-3, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- iBOT
def test_ibot_is_the_paper(place):
    mask = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]], dtype=torch.bool)
    f, g, c = draw(4, 6), draw(4, 6, seed=1), draw(6, seed=2)
    expected = 0.0
    for patches in ([0, 1, 2], [3]):
        each = []
        for i in patches:
            p, q = softmax((g[i] - c).tolist(), 0.2), softmax(f[i].tolist(), 0.3)
            each.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
        expected += sum(each) / len(each) / 3
    f, g, mask, c = (t.to(place.device) for t in (f, g, mask, c))
    got = ibot_patch_loss(f, g, mask, 0.3, 0.2, c, backend=place.backend)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_ibot_keeps_its_centre():
    loss, mask = IBOTPatchLoss(6, center_momentum=0.75), torch.ones(2, 2, dtype=torch.bool)
    f, g = draw(4, 6), draw(4, 6, seed=1)
    first = loss(g, f, mask)
    torch.testing.assert_close(first, ibot_patch_loss(f, g, mask, center=torch.zeros(6)))
    torch.testing.assert_close(loss.center.value, 0.25 * g.mean(0, keepdim=True).float())
    torch.testing.assert_close(loss(g, f, mask), ibot_patch_loss(f, g, mask, center=0.25 * g.mean(0)))
    assert set(loss.state_dict()) == {"center.value"}


# ------------------------------------------------------------------------------------------------------------ bad input
X = draw(3, 2, 4)
BAD = [
    ({"student_logits": X[:1], "teacher_logits": X[:1]}, "student_logits: expected a view that the teacher does not"),
    ({"student_logits": X[:, :1]}, r"student_logits\[0\]: expected 2 rows, got 1"),
    ({"student_logits": X[:, :, :3]}, r"student_logits\[0\]: expected width 4 as teacher_logits\[0\], got 3"),
    ({"student_logits": [X[0], X[1, :, :3]]}, r"student_logits\[1\]: expected width 4 as teacher_logits\[0\], got 3"),
    ({"student_logits": X.flatten(0, 1)[:5]}, "student_logits: expected whole views of 2 rows, got 5 rows"),
    ({"teacher_logits": X.flatten(0, 1)[:3]}, "teacher_logits: expected two views one below the other, got 3 rows"),
    ({"teacher_logits": []}, "teacher_logits: expected at least one view, got none"),
    ({"student_logits": X[:, :, :0]}, r"student_logits\[0\]: expected at least one row and one column, got .*0\)"),
    (
        {"student_logits": X.float()},
        r"student_logits\[0\]: expected dtype torch.float64 as teacher_logits\[0\], got torch.float32",
    ),
    ({"student_temp": 0.0}, "student_temp: expected a number above 0, got 0.0"),
    ({"teacher_temp": -0.1}, "teacher_temp: expected a number above 0, got -0.1"),
    ({"teacher_temp": math.nan}, "teacher_temp: expected a number above 0, got nan"),
    ({"center": torch.zeros(3)}, r"center: expected 4 elements, or \[2, 4\], got shape \(3,\)"),
    ({"backend": "abacus"}, "backend: expected one of .*, got 'abacus'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_bad_arguments_say_what_is_wrong_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        dino_loss(**{"student_logits": X, "teacher_logits": X[:2]} | arguments)
    assert "\n" not in str(raised.value)


MASK = torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": ~MASK}, ValueError, "mask: expected 3 elements that are true, as there are patches, got 1"),
        ({"mask": MASK.int()}, TypeError, "mask: expected bool, got torch.int32"),
        ({"mask": MASK[0]}, ValueError, r"mask: expected \[B, ...\], got shape \(2,\)"),
        ({"teacher_logits": X[0]}, ValueError, r"teacher_logits: expected shape \(3, 4\) as student_logits, got \(2"),
        ({"center": torch.zeros(5)}, ValueError, r"center: expected 4 elements, got shape \(5,\)"),
        ({"student_temp": 0}, ValueError, "student_temp: expected a number above 0, got 0"),
    ],
)
def test_bad_patches(arguments, error, message):
    given = {"student_logits": draw(3, 4), "teacher_logits": draw(3, 4), "mask": MASK}
    with pytest.raises(error, match=f"^{message}"):
        ibot_patch_loss(**given | arguments)


def test_a_mask_that_does_not_match_is_nan_where_nobody_counts():
    counted = torch.compile(ibot_patch_loss, fullgraph=True, backend="eager")
    assert counted(draw(3, 4), draw(3, 4), MASK).isfinite()
    assert counted(draw(4, 4), draw(4, 4), MASK).isnan()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DINOLoss(0), "output_dim: expected at least one prototype, got 0"),
        (lambda: DINOLoss(4, center_mode="median"), "center_mode: expected 'mean', got 'median'"),
        (lambda: DINOLoss(4, teacher_temp=0), "teacher_temp: expected a number above 0, got 0"),
        (lambda: Center((1, 4), momentum=2), "center_momentum: expected 0 to 1, got 2"),
        (lambda: DINOLoss(4)([X[0]] * 2, [X[0]] * 2), "epoch: expected an epoch, or a teacher_temp, got neither"),
    ],
)
def test_bad_modules(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


# ------------------------------------------------------------------------------------------------------------ resources
def test_extra_memory_is_the_gradient():
    f, g = torch.randn(6 * 8, 16384, requires_grad=True), torch.randn(2 * 8, 16384)
    dino_loss(f, g).backward()
    f.grad = None
    extra = peak_extra_bytes(lambda: dino_loss(f, g).backward())
    assert extra < 1.5 * f.nbytes + 2**20


def test_new_memory_comes_in_one_call_and_keeps_what_is_in_it():
    if why := native.why_not():
        pytest.skip(why)
    if sys.platform != "linux" or [int(n) for n in platform.release().split(".")[:2]] < [5, 14]:
        pytest.skip("pages come one by one before Linux 5.14")
    t = torch.empty(1 << 24)
    assert peak_extra_bytes(lambda: native.ask_for_pages(t)) > 0.9 * t.nbytes
    ones = torch.ones(3 << 18)
    native.ask_for_pages(ones[5:-7])
    assert (ones == 1).all()


def test_a_gradient_in_new_memory():
    """Rows of 64 KiB and more, some MiB in all; the first call's memory is new, the second's may be the first's."""
    f, g = draw(4, 9, 20000, dtype=torch.float32), draw(2, 9, 20000, seed=1, dtype=torch.float32)
    expected = evaluate(lambda f: dino_loss(f, g.double(), backend="reference"), {"f": f.double()})
    for _ in range(2):
        got = evaluate(lambda f: dino_loss(f, g), {"f": f})
        assert relative_error(got["f"], expected["f"]) < 1e-5


def test_a_loss_that_stands_alone_keeps_its_gradient_and_may_be_scaled():
    f, g = draw(4, 3, 50, dtype=torch.float32).requires_grad_(), draw(2, 3, 50, dtype=torch.float32)
    expected = F.cross_entropy  # any second term: its gradient adds up
    loss = dino_loss(f, g)
    loss.backward(retain_graph=True)
    once = f.grad.clone()
    loss.backward()
    torch.testing.assert_close(f.grad, 2 * once)
    f.grad = None
    (3 * dino_loss(f, g) + expected(f[0], torch.tensor([0, 1, 2]))).backward()
    other = evaluate(lambda f: expected(f[0], torch.tensor([0, 1, 2])), {"f": f})
    torch.testing.assert_close(f.grad, 3 * once + other["f"])
