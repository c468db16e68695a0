"""CLIP alone: values known by hand, hard negatives, several texts an image, the module, and what bad input gets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_kernels import ClipLoss, clip_loss, clip_reference
from ssl_kernels.ops import FLOATS, cross_mean
from ssl_kernels.testing import Case, check, evaluate, relative_error


def draw(n=6, d=4, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=dtype, device=device, generator=generator), dim=1)


def same(place, inputs, tolerance=1e-12, **rest):
    """Value and every gradient of the fused loss against the definition."""
    fused = evaluate(lambda **leaves: clip_loss(**leaves, **rest, backend=place.backend), inputs)
    expected = evaluate(lambda **leaves: clip_reference(**leaves, **rest), inputs)
    for name in expected.names:
        assert relative_error(fused[name], expected[name]) < tolerance, name
    return fused


def wide(place, m, k, d=5, **more):
    scale = torch.tensor(7.0, dtype=torch.float64, device=place.device)
    x, y = draw(m, d, torch.float64, place.device), draw(k, d, torch.float64, place.device, 1)
    return {"image_features": x, "text_features": y, "logit_scale": scale} | more


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("function", [clip_loss, clip_reference])
def test_values_known_by_hand(function):
    eye = torch.eye(5, dtype=torch.float64)
    for scale in (0.0, 1.0, 10.0, 100.0, -1.0):  # the positive is exp(scale) against four ones
        assert function(eye, eye, scale).item() == pytest.approx(math.log1p(4 * math.exp(-scale)), rel=1e-12)
    assert function(eye[:1], eye[:1], 3.0).item() == 0  # one pair: its positive is all there is
    # two images of one id and two texts of it: all are positives, so each row is as flat as its targets
    ids = torch.zeros(2, dtype=torch.int64)
    assert function(eye[:2], eye[2:4], 9.0, ids=ids).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize(("m", "k", "offset"), [(4, 9, 0), (4, 9, 5), (4, 9, 2), (1, 3, 1), (33, 70, 30)])
def test_more_texts_than_images(place, m, k, offset):
    same(place, wide(place, m, k), offset=offset)


@pytest.mark.parametrize("extra", [1, 4, 50])
def test_hard_negatives_are_texts_that_ask_nothing(place, extra):
    inputs = wide(place, 6, 6, negatives=draw(extra, 5, torch.float64, place.device, 2))
    got = same(place, inputs)
    # as more texts do
    more = dict(inputs)
    more["text_features"] = torch.cat([inputs["text_features"], more.pop("negatives")])
    other = evaluate(lambda **leaves: clip_loss(**leaves, backend=place.backend), more)
    torch.testing.assert_close(got.loss, other.loss)
    torch.testing.assert_close(torch.cat([got["text_features"], got["negatives"]]), other["text_features"])


@pytest.mark.parametrize("kind", ["all apart", "pairs", "one id", "large and negative", "none in common"])
def test_several_texts_an_image(place, kind):
    m, k = 6, 11
    ids, text_ids = torch.arange(m), torch.arange(k)
    if kind == "pairs":
        text_ids = text_ids // 2
    elif kind == "one id":
        ids, text_ids = ids * 0, text_ids * 0
    elif kind == "large and negative":
        ids, text_ids = (ids % 3 - 1) * 2**60, (text_ids % 4 - 1) * 2**60
    elif kind == "none in common":
        text_ids = text_ids + 100
    ids, text_ids = ids.to(place.device), text_ids.to(place.device)
    got = same(place, wide(place, m, k), ids=ids, text_ids=text_ids)
    same(place, wide(place, m, k, negatives=draw(3, 5, torch.float64, place.device, 2)), ids=ids, text_ids=text_ids)
    if kind == "none in common":  # no positives: nothing to learn, but a graph to go backward through
        assert all(not got[name].any() for name in got.names)


def test_ids_of_pairs(place):
    ids = torch.tensor([3, 3, 1, 0, 1, 7], device=place.device)
    same(place, wide(place, 6, 6), ids=ids)
    apart = clip_loss(**wide(place, 6, 6), ids=torch.arange(6, device=place.device), backend=place.backend)
    torch.testing.assert_close(apart, clip_loss(**wide(place, 6, 6), backend=place.backend))


def test_ids_keep_the_digits_of_a_loss_near_zero(place):
    x = torch.nn.functional.normalize(draw(24, 8, torch.float32, place.device), dim=1)
    inputs = {"image_features": x, "text_features": x.clone(), "logit_scale": 40.0}
    truth = clip_reference(x.double(), x.double(), 40.0).item()
    assert 0 < truth < 1e-3
    got = clip_loss(**inputs, ids=torch.arange(24, device=place.device), backend=place.backend)
    assert got.item() == pytest.approx(truth, rel=1e-5)  # taken from sums it is part of, it would be off by 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ids_in_narrow_dtypes(place, dtype):
    inputs = wide(place, 40, 60, 33)
    narrow = {k: v.to(dtype) if "features" in k else v.float() for k, v in inputs.items()}
    ids = torch.arange(40, device=place.device) % 7, torch.arange(60, device=place.device) % 9
    rest = dict(zip(("ids", "text_ids"), ids, strict=True))
    fused = evaluate(lambda **leaves: clip_loss(**leaves, **rest, backend=place.backend), narrow)
    eager = evaluate(lambda **leaves: clip_reference(**leaves, **rest), narrow)
    truth = evaluate(lambda **leaves: clip_reference(**leaves, **rest), {k: v.double() for k, v in narrow.items()})
    for name in truth.names:
        eps = torch.finfo(fused[name].dtype).eps
        assert relative_error(fused[name], truth[name]) <= 2 * max(relative_error(eager[name], truth[name]), eps), name


@pytest.mark.parametrize("ids", [False, True])
def test_compiles_in_one_graph_with_everything(place, ids):
    torch._dynamo.reset()
    rest = {"ids": torch.arange(6, device=place.device) // 2} if ids else {"offset": 0}
    inputs = wide(place, 6, 6, negatives=draw(3, 5, torch.float64, place.device, 2))
    compiled = torch.compile(clip_loss, fullgraph=True, backend="aot_eager")
    expected = evaluate(lambda **leaves: clip_loss(**leaves, **rest, backend=place.backend), inputs)
    got = evaluate(lambda **leaves: compiled(**leaves, **rest, backend=place.backend), inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("n", "d", "temperature"), [(3, 512, 0.01), (33, 200, 0.07), (257, 33, 2.0), (100, 128, 0.005)]
)
def test_sweeps_of_their_own_for_loss_and_gradients(place, dtype, trained, n, d, temperature, monkeypatch):
    # as large batches have them, where small ones get the loss and its gradients from one call
    monkeypatch.setattr(cross_mean, "_at_once", lambda *_: False)
    case = Case("clip", place.backend, place.device, dtype, n, d, temperature, trained=trained)
    check(case.fused, case, case.inputs())


# ------------------------------------------------------------------------------------------ scale and bias in all forms
def test_logit_scale_in_every_form(place):
    inputs = wide(place, 7, 7) | {"logit_scale": 4.0}
    expected = clip_loss(**inputs, backend=place.backend)
    on = lambda value, **kind: torch.tensor(value, device=place.device, **kind)  # noqa: E731
    for scale in (on(4.0), on([4.0]), on([[4.0]]), on(4), on(4.0, dtype=torch.float64), torch.tensor(4.0)):
        torch.testing.assert_close(clip_loss(**inputs | {"logit_scale": scale}, backend=place.backend), expected)
    for scale in (on([4.0]), on(4.0, dtype=torch.bfloat16)):
        leaf = nn.Parameter(scale)
        clip_loss(**inputs | {"logit_scale": leaf}, backend=place.backend).backward()
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_bias_changes_nothing_and_gets_a_gradient_of_zero(place, shape):
    inputs = wide(place, 7, 7)
    bias = torch.full(shape, -10.0, device=place.device, requires_grad=True)
    loss = clip_loss(**inputs, logit_bias=bias, backend=place.backend)
    assert torch.equal(loss, clip_loss(**inputs, backend=place.backend))
    loss.backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert torch.equal(loss, clip_loss(**inputs, logit_bias=3.0, backend=place.backend))


# --------------------------------------------------------------------------------------------------------------- module
def test_module_is_the_function():
    x, y, scale = draw(), draw(seed=1), torch.tensor(10.0)
    loss = ClipLoss(backend="reference")
    expected = clip_loss(x, y, scale, backend="reference")
    assert torch.equal(loss(x, y, scale), expected)
    assert torch.equal(
        loss(x, y, scale, logit_bias=torch.tensor(-10.0), output_dict=True)["contrastive_loss"], expected
    )
    assert not list(loss.parameters()) and not loss.state_dict()


def test_losses_built_on_it_find_logits_and_labels():
    """As distillation does: both matrices and the labels from the base class, its own forward."""

    class Distillation(ClipLoss):
        def forward(self, x, y, scale, teacher_x, teacher_y, teacher_scale):
            logits = self.get_logits(x, y, scale)
            labels = self.get_ground_truth(x.device, len(logits[0]))
            hard = sum(F.cross_entropy(s, labels) for s in logits) / 2
            teachers = self.get_logits(teacher_x, teacher_y, teacher_scale)
            soft = sum(F.cross_entropy(s, t.softmax(1)) for s, t in zip(logits, teachers, strict=True)) / 2
            return hard, soft

    class Weighted(ClipLoss):
        def __init__(self, weight, **flags):
            super().__init__(**flags)
            self.weight = weight

        def forward(self, x, y, scale):
            return self.weight * super().forward(x, y, scale)

    x, y = draw(dtype=torch.float64), draw(dtype=torch.float64, seed=1)
    hard, soft = Distillation()(x, y, 5.0, y, x, 2.0)
    torch.testing.assert_close(hard, clip_loss(x, y, 5.0, backend="reference"))
    assert soft.isfinite()
    torch.testing.assert_close(Weighted(2.0, backend="reference")(x, y, 5.0), 2 * hard)


def test_logits_have_the_bias_and_labels_are_kept_on_demand():
    x, y = draw(), draw(seed=1)
    per_image, per_text = ClipLoss().get_logits(x, y, 3.0, torch.tensor(-1.0))
    torch.testing.assert_close(per_image, 3 * x @ y.T - 1)
    torch.testing.assert_close(per_text, per_image.T)
    keeping, making = ClipLoss(cache_labels=True), ClipLoss()
    assert torch.equal(keeping.get_ground_truth(x.device, 6), torch.arange(6))
    assert keeping.get_ground_truth(x.device, 6) is keeping.get_ground_truth(x.device, 6)
    assert making.get_ground_truth(x.device, 6) is not making.get_ground_truth(x.device, 6)
    assert torch.equal(keeping.get_ground_truth(x.device, 4), torch.arange(4))
    assert torch.equal(ClipLoss(True, rank=1, world_size=3).get_ground_truth(x.device, 6), torch.arange(6, 12))


# ------------------------------------------------------------------------------------------------------------ bad input
X = draw()
IDS = torch.arange(6)
BAD = [
    ((X, draw(5), 1.0), {}, ValueError, "text_features: expected at least 6 rows for 6 of image_features, got 5"),
    ((X, X, 1.0), {"offset": 1}, ValueError, "text_features: expected at least 7 rows for 6 of image_features, got 6"),
    ((X, X, 1.0), {"offset": -1}, ValueError, "offset: expected 0 or more, got -1"),
    ((X, draw(6, 3), 1.0), {}, ValueError, "text_features: expected width 4 as image_features, got 3"),
    ((X[0], X, 1.0), {}, ValueError, r"image_features: expected 2 dimensions \[N, D\], got shape \(4,\)"),
    ((X[:0], X, 1.0), {}, ValueError, r"image_features: expected at least one row and one column, got shape \(0, 4\)"),
    ((X, X.double(), 1.0), {}, ValueError, "text_features: expected dtype torch.float32 as image_features, got .*64"),
    ((X, X.to("meta"), 1.0), {}, ValueError, "text_features: expected device cpu as image_features, got meta"),
    ((X, None, 1.0), {}, TypeError, "text_features: expected a tensor, got NoneType"),
    ((X.long(), X, 1.0), {}, TypeError, "image_features: expected float32, float64, bfloat16 or float16, got .*int64"),
    ((X, X, math.nan), {}, ValueError, "logit_scale: expected a number, got nan"),
    ((X, X, torch.ones(2)), {}, ValueError, r"logit_scale: expected a number or one element, got shape \(2,\)"),
    ((X, X, 1.0, torch.ones(2)), {}, ValueError, r"logit_bias: expected a number or one element, got shape \(2,\)"),
    ((X, X, 1.0), {"negatives": draw(3, 5)}, ValueError, "negatives: expected width 4 as image_features, got 5"),
    ((X, X, 1.0), {"ids": IDS[:5]}, ValueError, r"ids: expected shape \(6,\), one a row, got \(5,\)"),
    ((X, X[:5], 1.0), {"ids": IDS}, ValueError, r"ids: expected shape \(5,\), one a row, got \(6,\)"),
    ((X, X, 1.0), {"ids": IDS, "text_ids": IDS[:1]}, ValueError, r"text_ids: expected shape \(6,\), .*, got \(1,\)"),
    ((X, X, 1.0), {"ids": IDS.float()}, TypeError, "ids: expected integers, got torch.float32"),
    ((X, X, 1.0), {"ids": [1] * 6}, TypeError, "ids: expected a tensor of integers, got list"),
    ((X, X, 1.0), {"ids": IDS, "offset": 1}, ValueError, "offset: expected 0 beside ids, got 1"),
    ((X, X, 1.0), {"text_ids": IDS}, ValueError, "text_ids: expected ids beside them, got none"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
def test_bad_input_gets_one_line_that_says_what_is_wrong(arguments, keywords, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        clip_loss(*arguments, **keywords, backend="reference")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_horovod": True}, "use_horovod: expected False .*, got True"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1 for world_size 2, got 2"),
    ],
)
def test_module_refuses_bad_flags(flags, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ClipLoss(**flags)
