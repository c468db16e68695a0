"""open_clip's losses: against the library's own where it is there, and its CoCa and distillation losses over ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat import open_clip as ours
from ssl_kernels.testing import evaluate, relative_error


def inputs(bias=False):
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(6, 4, dtype=torch.float64, generator=generator), dim=1) for _ in range(2)]
    found = {"image_features": features[0], "text_features": features[1], "logit_scale": torch.tensor(9.0).double()}
    return found | {"logit_bias": torch.tensor(-3.0).double()} if bias else found


def same(function, expected, given):
    got, expected = evaluate(function, given), evaluate(expected, given)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-12, atol=1e-14, msg=name)


def clip(image_features, text_features, logit_scale, logit_bias=0.0):
    logits = logit_scale * image_features @ text_features.T + logit_bias
    i = torch.arange(len(logits))
    return (F.cross_entropy(logits, i) + F.cross_entropy(logits.T, i)) / 2


def siglip(image_features, text_features, logit_scale, logit_bias):
    logits = logit_scale * image_features @ text_features.T + logit_bias
    return -F.logsigmoid((2 * torch.eye(len(logits), dtype=logits.dtype) - 1) * logits).sum() / len(logits)


@pytest.mark.parametrize("bias", [False, True])
def test_clip(bias):
    same(ours.ClipLoss(), clip, inputs(bias))
    same(ours.ClipLoss(True, True, True, 0, 1, False), clip, inputs(bias))


def test_siglip():
    same(ours.SigLipLoss(), siglip, inputs(bias=True))
    same(ours.SigLipLoss(True, 0, 1, "shift", 128), siglip, inputs(bias=True))


def test_a_scale_of_one_element_and_a_dictionary_on_demand():
    given = inputs() | {"logit_scale": torch.full((1,), 9.0).double()}
    assert ours.ClipLoss()(**given, output_dict=True).keys() == {"contrastive_loss"}
    same(ours.ClipLoss(), clip, given)


def test_gathering_on_one_process_is_nothing():
    given = inputs()
    images, texts = ours.gather_features(given["image_features"], given["text_features"])
    assert images is given["image_features"] and texts is given["text_features"]


# ---------------------------------------------------------------------------------------------------------- the library
@pytest.fixture
def theirs():
    """open_clip's ``loss.py`` by itself: the package wants torchvision, the file does not."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("open_clip is not installed")
    path = Path(spec.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bias", [False, True])
def test_clip_as_open_clip_itself(theirs, bias):
    loss = theirs.ClipLoss()
    same(ours.ClipLoss(), loss, inputs(bias))
    given = inputs(bias)
    for got, expected in zip(ours.ClipLoss().get_logits(**given), loss.get_logits(**given), strict=True):
        torch.testing.assert_close(got, expected)
    assert torch.equal(ours.ClipLoss().get_ground_truth("cpu", 6), loss.get_ground_truth("cpu", 6))


def test_siglip_as_open_clip_itself(theirs):
    same(ours.SigLipLoss(), theirs.SigLipLoss(), inputs(bias=True))


def test_its_coca_and_distillation_losses_over_ours(theirs):
    given, generator = inputs(), torch.Generator().manual_seed(1)
    captions = {"logits": torch.randn(6, 5, 11, generator=generator), "labels": torch.randint(1, 11, (6, 5))}
    teacher = {f"dist_{k}": v for k, v in (inputs() | {"logit_scale": torch.tensor(4.0).double()}).items()}
    asked = ((theirs.CoCaLoss, (2.0, 0.5), captions), (theirs.DistillClipLoss, (), teacher))
    expected = [module(*arguments)(**given, **more) for module, arguments, more in asked]
    for module, _, _ in asked:
        module.__bases__ = (ours.ClipLoss,)
    got = [module(*arguments)(**given, **more) for module, arguments, more in asked]
    torch.testing.assert_close(got, expected)
    assert relative_error(got[0][0], 0.5 * clip(**given)) < 1e-12
