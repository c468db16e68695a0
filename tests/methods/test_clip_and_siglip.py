from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.batch import Batch
from methods.clip import CLIP
from methods.siglip import SigLIP
from methods.train import Run, train
from ssl_kernels import clip_reference

KINDS = ("order", "attribute")


@pytest.fixture
def run(settings_of: Callable) -> Callable[..., Run]:
    return lambda method, **changes: Run(method, method.Config(**settings_of(method.__name__.lower(), **changes)))


def batch_of(run: Run) -> tuple[list[torch.Tensor], Batch]:
    batch = run._batch(0, 0, torch.arange(12))
    batch.ids = batch.ids.clone()
    batch.ids[3:5] = batch.ids[0]
    run.method.eval()
    return run.method(batch), batch


@pytest.mark.parametrize("views", [1, 3])
def test_clip_is_its_reference(run: Callable, views: int):
    r = run(CLIP, views=views, hard_negatives=KINDS)
    (*images, texts, negatives), batch = embeddings = batch_of(r)
    assert len(images) == views
    assert negatives.any(1).all()
    ours = r.method.loss(*embeddings)
    ids = batch.ids
    expected = clip_reference(
        torch.cat(images), texts, 1 / 0.07, negatives=negatives, ids=ids.repeat(views), text_ids=ids
    )
    torch.testing.assert_close(ours, expected)
    assert ours > clip_reference(torch.cat(images), texts, 1 / 0.07, ids=ids.repeat(views), text_ids=ids)


def test_captions_without_a_version_add_nothing(run: Callable):
    r = run(CLIP, hard_negatives=KINDS)
    batch = r._batch(0, 0, torch.arange(12))
    batch.captions = ["stripes"] * 12
    r.method.eval()
    *images, texts, negatives = r.method(batch)
    assert not negatives.any()
    expected = clip_reference(images[0], texts, 1 / 0.07, ids=batch.ids, text_ids=batch.ids)
    torch.testing.assert_close(r.method.loss([*images, texts, negatives], batch), expected)


def test_siglip_is_the_sum_over_all_pairs(run: Callable):
    r = run(SigLIP, views=2, hard_negatives=KINDS)
    (*images, texts, negatives), batch = embeddings = batch_of(r)
    together = F.pad((batch.ids[:, None] == batch.ids).float(), (0, len(negatives)))
    assert together.sum() == 12 + 6
    columns, total = torch.cat([texts, negatives]), 0.0
    for x in images:
        s = 10 * x @ columns.T - 10
        total += -F.logsigmoid((2 * together - 1) * s).sum() / 12
    torch.testing.assert_close(r.method.loss(*embeddings), total / 2)


def test_the_scale_begins_and_ends_as_people_expect(run: Callable):
    method = run(CLIP).method
    assert method.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        method.logit_scale.fill_(9.0)
    method.after_step(0, 1)
    assert method.logit_scale.exp().item() == pytest.approx(100)
    siglip = run(SigLIP).method
    assert siglip.logit_scale.exp().item() == pytest.approx(10)
    assert siglip.logit_bias.item() == -10
    assert math.isfinite(siglip.logit_bias.item())


@pytest.mark.parametrize("method", [CLIP, SigLIP])
def test_it_learns_what_the_captions_say(method: Any, settings_of: Callable, tmp_path: Path):
    changes: dict[str, Any] = {"epochs": 12, "lr": 5e-3, "crop": (0.8, 1.0), "knn_every": 0, "hard_negatives": KINDS}
    results = train(method, method.Config(**settings_of(method.__name__.lower(), linear_probe=True, **changes)))
    assert results["zero_shot"] > 60  # three classes
    assert {"image_to_text_r1", "text_to_image_r10", "beats_order", "order_versions"} <= results.keys()


def test_images_without_captions_are_not_enough(settings: Callable):
    with pytest.raises(ValueError, match="data: expected captions in"):
        train(CLIP, CLIP.Config(**settings()))


def test_one_view_is_enough_for_captions_and_no_view_is_not(run: Callable):
    with pytest.raises(ValueError, match="views: expected at least 1, got 0"):
        run(CLIP, views=0)
