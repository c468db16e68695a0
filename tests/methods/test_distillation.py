"""DINO and DINOv2: their losses, schedules and settings; that outputs collapse where the paper says they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from methods.__main__ import METHODS
from methods.assignments import assignment_monitor
from methods.log import read_metrics
from methods.train import Run, train
from ssl_kernels import (
    cosine_momentum,
    dino_reference,
    fused_sinkhorn_center,
    ibot_patch_reference,
    koleo_reference,
)

both = pytest.mark.parametrize("name", ["dino", "dinov2"])


def made(name: str, settings_of: Callable, **changes: object) -> Run:
    return Run(METHODS[name], METHODS[name].Config(**settings_of(name, **changes)))


# ------------------------------------------------------------------------------------------------------------- losses
def test_dino_is_its_formula(settings_of: Callable):
    run = made("dino", settings_of, student_temp=0.2, teacher_temp=0.05, local_views=3)
    method, batch = run.method, run._batch(0, 0, torch.arange(16))
    method.criterion.center.normal_(std=0.1)
    center = method.criterion.center.clone()
    embeddings = method(batch)
    assert [tuple(x.shape) for x in embeddings] == [(16, 8)] * (2 + 3 + 2)
    w, v = method.student["head"].prototypes, method.teacher.module["head"].prototypes
    student, teacher = [x @ w.T for x in embeddings[:5]], [x @ v.T for x in embeddings[5:]]
    expected = dino_reference(student, teacher, 0.2, 0.05, center)
    torch.testing.assert_close(method.loss(embeddings, batch), expected)
    moved = 0.9 * center + 0.1 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(method.criterion.center, moved)


def test_dinov2_is_the_sum_of_its_three_losses(settings_of: Callable):
    weights = {"ibot_weight": 0.7, "koleo_weight": 0.3}
    run = made("dinov2", settings_of, teacher_temp=0.06, warmup_teacher_temp=0.06, local_views=1, **weights)
    method, batch = run.method, run._batch(0, 0, torch.arange(16))
    views, teacher = method.student, method.teacher.module
    masks = method.masks(batch.seeds, 9)
    large = torch.cat(batch.views[:2])
    ours = views["encoder"](large, masks, method.mask_token, tokens=True)
    theirs = teacher["encoder"](large, tokens=True)
    small = method.embed(batch.views[2])

    x = [*views["head"](ours[:, 0]).chunk(2), small]
    t = teacher["head"](theirs[:, 0])
    w, v = (net["head"].prototypes for net in (views, teacher))
    expected = dino_reference([a @ w.T for a in x], t @ v.T, 0.1, 0.06, fused_sinkhorn_center(t, v, 0.06))
    p, q = (net["patch_head"](tokens[:, 1:][masks]) for net, tokens in ((views, ours), (teacher, theirs)))
    w, v = (net["patch_head"].prototypes for net in (views, teacher))
    center = fused_sinkhorn_center(q, v, 0.06)
    expected = expected + 0.7 * ibot_patch_reference(p @ w.T, q @ v.T, masks, 0.1, 0.06, center)
    expected = expected + 0.3 * sum(koleo_reference(c) for c in ours[:, 0].chunk(2))
    torch.testing.assert_close(method.loss(method(batch), batch), expected)


def test_one_head_serves_both_where_asked(settings_of: Callable):
    shared, apart = (made("dinov2", settings_of, separate_heads=flag).method for flag in (False, True))
    assert list(shared.student) == ["encoder", "head"]
    assert list(apart.student) == ["encoder", "head", "patch_head"]
    run = made("dinov2", settings_of, separate_heads=False, freeze_last_layer=0)
    run._step(0, torch.arange(32))
    assert run.method.student["head"].directions.grad.norm() > 0


# ---------------------------------------------------------------------------------------------------------- schedules
@both
def test_the_last_layer_is_frozen_at_first(name: str, settings_of: Callable):
    run = made(name, settings_of, epochs=3, freeze_last_layer=2, local_views=1)
    frozen = [k for k, _ in run.method.named_parameters() if k.startswith("student") and k.endswith("directions")]
    assert len(frozen) == (2 if name == "dinov2" else 1)
    for step in range(6):  # two a epoch
        before = {k: p.detach().clone() for k, p in run.method.student.named_parameters(prefix="student")}
        run._step(step, torch.arange(32))
        same = {k for k, p in run.method.student.named_parameters(prefix="student") if torch.equal(p, before[k])}
        assert same == (set(frozen) if step < 4 else set()), step


@both
def test_the_teacher_follows_with_a_momentum_that_grows(name: str, settings_of: Callable):
    run = made(name, settings_of, ema_momentum=0.8, epochs=2, local_views=1)
    for step in range(4):
        before = [p.clone() for p in run.method.teacher.parameters()]
        run._step(step, torch.arange(32))
        m = cosine_momentum(step, run.total, 0.8)
        students = run.method.student.parameters()
        for old, new, p in zip(before, run.method.teacher.parameters(), students, strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * p)
    assert not any(p.requires_grad for p in run.method.teacher.parameters())


def test_the_teachers_temperature_warms_up_epoch_by_epoch(settings_of: Callable):
    warm = {"warmup_teacher_temp": 0.02, "teacher_temp": 0.08, "warmup_teacher_temp_epochs": 4}
    run = made("dino", settings_of, epochs=6, local_views=0, **warm)
    seen = []
    for step in range(run.total):
        seen.append(run.method.teacher_temp)
        run._step(step, torch.arange(32))
    assert seen == pytest.approx([t for t in (0.02, 0.04, 0.06, 0.08, 0.08, 0.08) for _ in range(2)])


# ------------------------------------------------------------------------------------------------------------ collapse
def test_the_monitor_is_its_formula():
    t, s = (F.normalize(torch.randn(100, 8), dim=1) for _ in range(2))
    v, w = (F.normalize(torch.randn(30, 8), dim=1) for _ in range(2))
    center = 0.1 * torch.randn(1, 1, 30)
    values = assignment_monitor(t, s, v, w, center, 0.1, 0.2)
    p, q = ((t @ v.T - center[0]) / 0.1).softmax(1), (s @ w.T / 0.2).softmax(1)
    assert values["teacher_entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-5)
    assert values["prototype_entropy"] == pytest.approx(-(p.mean(0) * p.mean(0).log()).sum().item(), rel=1e-5)
    assert values["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("same", ["one", "uniform"])
def test_the_monitor_tells_the_two_collapses_apart(same: str):
    x, w = torch.zeros(50, 8), torch.zeros(16, 8)
    x[:, 0] = 1
    w[0 if same == "one" else slice(None), 0] = 1
    values = assignment_monitor(x, x, w, w, torch.zeros(16), 0.04, 0.04)
    expected = {"one": 0.0, "uniform": math.log(16)}[same]
    assert values == pytest.approx({"teacher_entropy": expected, "prototype_entropy": expected, "kl": 0.0}, abs=1e-5)


ABLATIONS = {
    "both": {},
    "no centre": {"center": False},
    "no sharpening": {"teacher_temp": 1.0, "warmup_teacher_temp": 1.0},
}


def test_without_centring_or_sharpening_the_outputs_collapse(settings_of: Callable, npz: Path):
    """Figure 7 of the paper: to one prototype, or to the uniform distribution; with both, to neither."""
    hard = {"epochs": 15, "optimizer": "sgd", "lr": 0.1, "ema_momentum": 0.9, "head_norm": True, "knn_every": 0}
    entropy = {}
    for name, change in ABLATIONS.items():
        config = settings_of("dino", **hard | change | {"out": npz.with_name(name)})
        results = train(METHODS["dino"], METHODS["dino"].Config(**config))
        entropy[name] = [results[key] / math.log(64) for key in ("teacher_entropy", "prototype_entropy")]
    assert max(entropy["no centre"]) < 0.3 < min(entropy["both"]), entropy
    assert max(entropy["both"]) < 0.9 < min(entropy["no sharpening"]), entropy


# -------------------------------------------------------------------------------------------------- the training loop
@both
def test_bfloat16_trains_and_the_picture_is_drawn(name: str, settings_of: Callable, tmp_path: Path):
    config = {"precision": "bf16", "epochs": 1, "encoder": "vit", "knn_every": 0, "linear_probe": True}
    train(METHODS[name], METHODS[name].Config(**settings_of(name, **config)))
    rows = read_metrics(tmp_path / "run", "train")
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "run" / "attention.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("dino", {"views": 1, "local_views": 0}, "local_views: expected at least 1 beside a single view"),
        ("dino", {"local_views": -1}, "local_views: expected 0 or more, got -1"),
        ("dino", {"local_crop": (0.5, 0.1)}, "local_crop: expected 0 < smallest <= largest <= 1"),
        ("dino", {"local_size": 2}, "local_size: expected at least 4 pixels, got 2"),
        ("dino", {"local_blur": 2.0}, "local_blur: expected a probability, got 2.0"),
        ("dino", {"prototypes": 0}, "prototypes: expected at least 1, got 0"),
        ("dino", {"student_temp": 0.0}, "student_temp: expected a number above 0, got 0.0"),
        ("dino", {"teacher_temp": -1.0}, "teacher_temp: expected a number above 0, got -1.0"),
        ("dino", {"warmup_teacher_temp": 0.0}, "warmup_teacher_temp: expected a number above 0"),
        ("dino", {"ema_momentum": 1.5}, "ema_momentum: expected 0 to 1, got 1.5"),
        ("dino", {"freeze_last_layer": -1}, "freeze_last_layer: expected 0 or more, got -1"),
        (
            "dino",
            {"encoder": "vit", "local_size": 6},
            "patch_size: expected a divisor of 6, the side of images or views",
        ),
        ("dino", {"final_weight_decay": -1.0}, "final_weight_decay: expected a number >= 0, got -1.0"),
        ("dino", {"solarize": 2.0}, "solarize: expected a probability, got 2.0"),
        ("dinov2", {"encoder": "small"}, "encoder: expected one with patches, vit or timm:vit_..., got 'small'"),
        ("dinov2", {"masked_views": 3}, "masked_views: expected 1 to 2, the large views, got 3"),
    ],
)
def test_settings_that_no_run_can_have(name: str, wrong: dict, said: str, settings_of: Callable, tmp_path: Path):
    with pytest.raises(ValueError) as error:
        made(name, settings_of, **wrong)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_single_large_view_and_local_ones_are_enough(settings_of: Callable):
    run = made("dino", settings_of, views=1, local_views=2)
    assert run._step(0, torch.arange(32)).isfinite()
