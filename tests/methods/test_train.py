from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.__main__ import METHODS
from methods.config import Config
from methods.encoders import Encoder
from methods.log import Log, read_metrics
from methods.moco import MoCo
from methods.simclr import SimCLR
from methods.supcon import SupCon
from methods.train import Run, train

ROOT = Path(__file__).resolve().parents[2]
every_method = pytest.mark.parametrize("name", sorted(METHODS))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Of methods' states: tensors, and what else a method keeps."""
    pairs = [(a[key], b[key]) for key in a.keys() & b.keys()]
    return a.keys() == b.keys() and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def timeless(folder: Path, kind: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder, kind)]


@every_method
def test_training_leaves_its_traces(name: str, settings_of: Callable, tmp_path: Path):
    method = METHODS[name]
    results = train(method, method.Config(**settings_of(name, epochs=3, linear_probe=True, tensorboard=True)))
    rows = read_metrics(tmp_path / "run", "train")
    assert [r["step"] for r in rows] == list(range(6))
    evaluated = read_metrics(tmp_path / "run", "eval")
    assert [r["epoch"] for r in evaluated] == [1, 2, 3]
    assert {"knn", "feature_std", "alignment", "uniformity"} <= evaluated[-1].keys()
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["knn"] == evaluated[-1]["knn"]
    assert 0 <= results["linear_probe"] <= 100
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == name
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_training_lowers_the_loss(settings: Callable, tmp_path: Path):
    train(SimCLR, SimCLR.Config(**settings(epochs=8)))
    rows = read_metrics(tmp_path / "run", "train")
    assert sum(r["loss"] for r in rows[-4:]) < sum(r["loss"] for r in rows[:4])


@every_method
def test_stopped_and_resumed_is_never_stopped(name: str, settings_of: Callable, tmp_path: Path):
    method, every = METHODS[name], {"epochs": 4, "knn_every": 2}
    train(method, method.Config(**settings_of(name, out=tmp_path / "whole", **every)))
    run = Run(
        method, method.Config(**settings_of(name, out=tmp_path / "parts", **every | {"save_every": 3, "resume": True}))
    )
    step, stop = run._step, iter(range(7))

    def interrupted(*arguments: object) -> torch.Tensor:
        if next(stop, None) is None:
            raise KeyboardInterrupt  # in the middle of epoch 4, one epoch after the only checkpoint
        return step(*arguments)

    run._step = interrupted
    with Log(run.folder, tensorboard=False) as log, pytest.raises(KeyboardInterrupt):
        run.fit(log)
    train(method, method.Config(**settings_of(name, out=tmp_path / "parts", **every | {"resume": True})))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for kind in ("train", "eval"):
        assert timeless(tmp_path / "whole", kind) == timeless(tmp_path / "parts", kind)


def test_killed_at_any_moment_and_resumed_is_never_killed(settings: Callable, tmp_path: Path):
    many = {"epochs": 60, "knn_every": 7, "save_every": 2}
    train(SimCLR, SimCLR.Config(**settings(out=tmp_path / "whole", **many)))
    values = settings(out=tmp_path / "killed", **many)
    flags = []
    for key, value in values.items():
        name = key.replace("_", "-")
        flags += (
            ([f"--{name}"] if value else [f"--no-{name}"]) if isinstance(value, bool) else [f"--{name}", str(value)]
        )
    command = [sys.executable, "-m", "methods", "simclr", "--resume", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    moments, killed = random.Random(0), 0
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(2):
        lines = (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) + moments.randint(5, 45)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1].decode()
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert killed == 2
    train(SimCLR, SimCLR.Config(**{**values, "resume": True}))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    for kind in ("train", "eval"):
        assert timeless(tmp_path / "whole", kind) == timeless(tmp_path / "killed", kind)


def test_a_line_cut_short_is_written_again_and_nothing_twice(tmp_path: Path):
    with Log(tmp_path, tensorboard=False) as log:
        log("train", 0, loss=1.0)
        log("train", 1, loss=2.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with Log(tmp_path, tensorboard=False) as log:
        log("train", 0, loss=1.0)
        log("train", 1, loss=2.0)
        log("eval", 1, knn=50.0)
    assert [r["loss"] for r in read_metrics(tmp_path, "train")] == [1.0, 2.0]
    assert len(path.read_text().splitlines()) == 3


def test_evaluating_often_does_not_change_the_weights(settings: Callable, tmp_path: Path):
    for folder, often in (("often", 1), ("never", 0)):
        train(SimCLR, SimCLR.Config(**settings(out=tmp_path / folder, knn_every=often)))
    assert same(weights(tmp_path / "often"), weights(tmp_path / "never"))


def test_another_seed_is_another_run(settings: Callable, tmp_path: Path):
    for folder, seed in (("a", 0), ("b", 1)):
        train(SimCLR, SimCLR.Config(**settings(out=tmp_path / folder, seed=seed, epochs=1)))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_accumulated_gradients_are_the_mean_over_the_micro_batches(settings: Callable):
    run = Run(SimCLR, SimCLR.Config(**settings(accumulate=2, optimizer="sgd", lr=0.0)))
    rows = torch.arange(32)
    run.augment = lambda images, views=2: [images.float() / 255, images.flip(3).float() / 255]
    total = run._step(0, rows)
    ours = [p.grad.clone() for p in run.method.parameters()]
    run.optimizer.zero_grad()
    halves = []
    for k, part in enumerate(rows.chunk(2)):
        batch = run._batch(0, k, part)
        assert len(batch.views[0]) == len(batch.labels) == 16
        halves.append(run.method.loss(run.method(batch), batch))
    (sum(halves) / 2).backward()
    assert total.item() == pytest.approx(sum(h.item() for h in halves) / 2)
    for a, p in zip(ours, run.method.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "grad_cache": True}], ids=["plain", "cached"])
def test_bfloat16_trains(settings: Callable, tmp_path: Path, more: dict):
    train(SimCLR, SimCLR.Config(**settings(precision="bf16", **more)))
    rows = read_metrics(tmp_path / "run", "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(w.dtype != torch.bfloat16 for w in weights(tmp_path / "run").values())


def test_fp16_goes_on_with_its_scale(settings: Callable):
    many = settings(precision="fp16", epochs=2)
    run = Run(SimCLR, SimCLR.Config(**many))
    loss_of, before = run.method.loss, [p.clone() for p in run.method.parameters()]
    run.method.loss = lambda z, batch: 1e30 * z[0].sum()  # its gradient overflows: no step, and half the scale
    assert run.gradient.scaler.get_scale() == 2.0**16
    run._step(0, torch.arange(32))
    assert all(torch.equal(a, b) for a, b in zip(before, run.method.parameters(), strict=True))
    run.method.loss = loss_of
    run._step(1, torch.arange(32))
    assert not any(torch.equal(a, b) for a, b in zip(before, run.method.parameters(), strict=True))
    run._save()
    assert Run(SimCLR, SimCLR.Config(**many | {"resume": True})).gradient.scaler.get_scale() == 2.0**15


def test_a_compiled_encoder_trains_to_the_same_weights(settings: Callable, tmp_path: Path, monkeypatch):
    compiled = []

    def traced(module: torch.nn.Module) -> None:
        """As `compile`, without the minute that code generation takes."""
        compiled.append(module)
        compile_module(module, backend="eager")

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    for folder in ("plain", "compile"):
        flag = {"compile": folder == "compile"}
        train(MoCo, MoCo.Config(**settings(out=tmp_path / folder, epochs=1, queue_size=64, **flag)))
    assert [type(module) for module in compiled] == [Encoder, Encoder]  # that of the keys too
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "compile")
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_the_second_pass_of_the_gradient_cache_is_the_first_one(settings: Callable):
    """The same augmentations and the same dropout in both, and batch statistics that move once."""
    run = Run(SimCLR, SimCLR.Config(**settings(accumulate=2, grad_cache=True, optimizer="sgd", lr=0.0)))
    run.method.encoder = torch.nn.Sequential(run.method.encoder, torch.nn.Dropout(0.5))
    embeddings = []
    run.method.register_forward_hook(lambda module, inputs, output: embeddings.append(output[0].detach().clone()))
    run._step(0, torch.arange(32))
    assert len(embeddings) == 4
    assert torch.equal(embeddings[0], embeddings[2]) and torch.equal(embeddings[1], embeddings[3])
    norms = [m for m in run.method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.num_batches_tracked.item() for m in norms] == [2] * len(norms)


def test_supcon_needs_labels(settings: Callable, npz: Path):
    with np.load(npz) as arrays:
        np.savez(npz, images=arrays["images"])
    assert "data: expected labels in" in refused(SupCon.Config(**settings()), SupCon)


def test_four_small_views_train(settings: Callable, tmp_path: Path):
    train(SimCLR, SimCLR.Config(**settings(views=4, view_size=8, epochs=6)))
    rows = read_metrics(tmp_path / "run", "train")
    assert sum(r["loss"] for r in rows[-3:]) < sum(r["loss"] for r in rows[:3])


def test_images_without_labels_train_too(settings: Callable, tmp_path: Path, npz: Path):
    import numpy as np

    with np.load(npz) as z:
        np.savez(tmp_path / "unlabelled.npz", images=z["images"])
    results = train(SimCLR, SimCLR.Config(**settings(data=str(tmp_path / "unlabelled.npz"), linear_probe=True)))
    assert "knn" not in results
    assert results["feature_std"] > 0.1


def test_a_collapse_is_said(settings: Callable, capsys: pytest.CaptureFixture):
    run = Run(SimCLR, SimCLR.Config(**settings()))
    run.method.embed = lambda x: torch.ones(len(x), 8)
    assert run.evaluate()["feature_std"] < 1e-6
    assert "collapse" in capsys.readouterr().out


def refused(config: Config, method: type = SimCLR) -> str:
    with pytest.raises(ValueError, match="expected|holds") as error:
        train(method, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weight_decay_follows_half_a_cosine_and_biases_have_none(settings: Callable):
    run = Run(SimCLR, SimCLR.Config(**settings(weight_decay=0.0, final_weight_decay=0.4)))
    seen = []
    for step in range(run.total):
        run._step(step, torch.arange(32))
        seen.append([group["weight_decay"] for group in run.optimizer.param_groups])
    assert seen == [[pytest.approx(0.2 * (1 - math.cos(math.pi * k / run.total))), 0.0] for k in range(run.total)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_is_scaled_down_to_its_largest_norm(settings: Callable, precision: str):
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "warmup_epochs": 0.0}
    run = Run(SimCLR, SimCLR.Config(**settings(**plain, clip_gradient=0.01, precision=precision)))
    before = [p.detach().clone() for p in run.method.parameters()]
    run._step(0, torch.arange(32))
    moved = [p - b for p, b in zip(run.method.parameters(), before, strict=True)]
    assert torch.stack([m.norm() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-2)


def test_a_folder_in_use_is_not_overwritten(settings: Callable, tmp_path: Path):
    train(SimCLR, SimCLR.Config(**settings(epochs=1)))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert "--resume" in refused(SimCLR.Config(**settings(epochs=1)))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_other_settings_data_or_method(settings: Callable, tmp_path: Path, npz: Path):
    train(SimCLR, SimCLR.Config(**settings(epochs=1)))
    message = refused(SimCLR.Config(**settings(epochs=1, lr=0.5, resume=True)))
    assert "lr 0.01 (now 0.5)" in message
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"method": "byol"}, path)
    assert "got byol" in refused(SimCLR.Config(**settings(epochs=1, resume=True)))
    torch.save(state | {"data": "60000x1x28x28 crc32 00000000"}, path)
    assert "training images" in refused(SimCLR.Config(**settings(epochs=1, resume=True)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": float("nan")}, "lr"),
        ({"flip": 2.0}, "flip"),
        ({"crop": (0.9, 0.1)}, "crop"),
        ({"accumulate": 5}, "1 processes x 5 micro-batches"),
        ({"views": 1}, "views"),
        ({"view_size": 0}, "view_size"),
        ({"batch_size": 1}, "batch_size"),
        ({"bn_groups": 17}, "batch_size"),
        ({"grad_cache": True}, "grad_cache"),
        ({"batch_size": 79}, "78 training images"),
        ({"device": "gpu"}, "device"),
        ({"optimizer": "adam"}, "optimizer"),
    ],
)
def test_settings_that_no_run_can_have(settings: Callable, tmp_path: Path, wrong: dict, said: str):
    assert said in refused(SimCLR.Config(**settings(**wrong)))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(settings: Callable, tmp_path: Path):
    run = Run(SimCLR, SimCLR.Config(**settings()))
    run.method.loss = lambda z, batch: z[0].sum() * float("nan")
    with Log(run.folder, tensorboard=False) as log, pytest.raises(ValueError, match="loss: expected a finite number"):
        run.fit(log)
