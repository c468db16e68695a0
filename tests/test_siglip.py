"""SigLIP alone: values known by hand, blocks of texts, the module, and what bad input gets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels import SigLipLoss, siglip_loss, siglip_reference
from ssl_kernels.testing import evaluate, relative_error


def draw(n=6, d=4, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=dtype, device=device, generator=generator), dim=1)


@pytest.mark.parametrize("function", [siglip_loss, siglip_reference])
def test_values_known_by_hand(function):
    eye = torch.eye(5, dtype=torch.float64)
    for scale, bias in ((10.0, -5.0), (1.0, 0.0), (0.0, 2.0), (-3.0, 1.0), (100.0, -60.0)):
        expected = math.log1p(math.exp(-scale - bias)) + 4 * math.log1p(math.exp(bias))
        assert function(eye, eye, scale, bias).item() == pytest.approx(expected, rel=1e-12)
    assert function(eye, eye, 1.0).item() == pytest.approx(function(eye, eye, 1.0, 0.0).item())
    assert function(eye, eye, 0.0, offset=None).item() == pytest.approx(5 * math.log(2), rel=1e-12)


@pytest.mark.parametrize(
    ("m", "k", "offset"), [(4, 9, 0), (4, 9, 5), (1, 3, 1), (5, 3, None), (33, 70, 30), (2, 2, None)]
)
def test_other_numbers_of_texts(place, m, k, offset):
    on = {"dtype": torch.float64, "device": place.device}
    inputs = {"image_features": draw(m, 5, **on), "text_features": draw(k, 5, **on, seed=1)}
    inputs |= {"logit_scale": torch.tensor(8.0, **on), "logit_bias": torch.tensor([-3.0], **on)}
    fused = evaluate(lambda **leaves: siglip_loss(**leaves, offset=offset, backend=place.backend), inputs)
    expected = evaluate(lambda **leaves: siglip_reference(**leaves, offset=offset), inputs)
    for name in expected.names:
        assert relative_error(fused[name], expected[name]) < 1e-12, name


def test_blocks_of_texts_add_up(place):
    on = {"dtype": torch.float64, "device": place.device}
    x, y = draw(7, 5, **on), draw(21, 5, **on, seed=1)
    whole = siglip_loss(x, y, 9.0, -4.0, offset=7, backend=place.backend)
    own = siglip_loss(x, y[7:14], 9.0, -4.0, backend=place.backend)
    others = [siglip_loss(x, part, 9.0, -4.0, offset=None, backend=place.backend) for part in (y[:7], y[14:])]
    torch.testing.assert_close(own + sum(others), whole)


def test_module_is_the_function():
    x, y, scale, bias = draw(), draw(seed=1), torch.tensor(10.0), torch.tensor(-10.0)
    expected = siglip_loss(x, y, scale, bias, backend="reference")
    for loss in (SigLipLoss(backend="reference"), SigLipLoss(True, 0, 1, "gather", 64, backend="reference")):
        assert torch.equal(loss(x, y, scale, bias), expected)
        assert torch.equal(loss(x, y, scale, bias, output_dict=True)["contrastive_loss"], expected)
        assert not list(loss.parameters()) and not loss.state_dict()


def test_logits_and_signs_for_losses_built_on_it():
    x, y, loss = draw(dtype=torch.float64), draw(dtype=torch.float64, seed=1), SigLipLoss()
    logits = loss.get_logits(x, y, 5.0, torch.tensor(-2.0))
    signs = loss.get_ground_truth(x.device, x.dtype, 6)
    expected = siglip_loss(x, y, 5.0, -2.0, backend="reference")
    torch.testing.assert_close(-F.logsigmoid(signs * logits).sum() / 6, expected)
    assert (loss.get_ground_truth(x.device, x.dtype, 6, negative_only=True) == -1).all()


X = draw()
BAD = [
    ((X, draw(5), 1.0, 0.0), {}, ValueError, "text_features: expected at least 6 rows for 6 of image_features, got 5"),
    ((X, draw(6, 3), 1.0, 0.0), {}, ValueError, "text_features: expected width 4 as image.*, got 3"),
    ((X, draw(6, 3), 1.0, 0.0), {"offset": None}, ValueError, "text_features: expected width 4 as image.*, got 3"),
    ((X, X[:0], 1.0, 0.0), {"offset": None}, ValueError, r"text_features: expected at least one row .* \(0, 4\)"),
    ((X, X.half(), 1.0, 0.0), {}, ValueError, "text_features: expected dtype torch.float32 as image.*, got .*16"),
    ((X, X, 1.0, torch.ones(2)), {}, ValueError, r"logit_bias: expected a number or one element, got shape \(2,\)"),
    ((X, X, torch.ones(3)), {}, ValueError, r"logit_scale: expected a number or one element, got shape \(3,\)"),
    ((X, [1.0], 1.0), {}, TypeError, "text_features: expected a tensor, got list"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD, ids=[m[:60] for *_, m in BAD])
def test_bad_input_gets_one_line_that_says_what_is_wrong(arguments, keywords, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        siglip_loss(*arguments, **keywords, backend="reference")


def test_module_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="^dist_impl: expected bidir, shift, reduce or gather, got 'ring'$"):
        SigLipLoss(dist_impl="ring")
    with pytest.raises(ValueError, match="^rank: expected 0 to 0 for world_size 1, got -1$"):
        SigLipLoss(rank=-1)
