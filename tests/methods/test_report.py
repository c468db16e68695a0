from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.__main__ import METHODS, main
from methods.load import load_method
from methods.train import train

QUICK = ["--shots", "1", "3", "--fine-tune", "0.1", "--fine-tune-epochs", "1", "--threads", "1", "--no-progress"]


@pytest.fixture
def trained(settings_of: Callable, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **changes: Any) -> Path:
        train(METHODS[name], METHODS[name].Config(**settings_of(name, knn_every=0, **changes)))
        return tmp_path / "run"

    return make


def stopped(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_checkpoint_alone_brings_the_method_back(name: str, trained: Callable):
    folder = trained(name, epochs=3)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    for path in (folder, folder / "checkpoint.pt"):
        method, config, _ = load_method(path, METHODS)
        assert type(config) is METHODS[name].Config
        mine = method.state_dict()
        assert mine.keys() == state.keys()
        assert all(torch.equal(v, mine[k]) for k, v in state.items() if isinstance(v, torch.Tensor))
    assert method.embed(torch.rand(2, 3, 12, 12)).isfinite().all()


def test_one_table_one_json_and_pictures(trained: Callable, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = trained("simclr", epochs=2)
    rng = np.random.default_rng(0)
    grey = tmp_path / "grey.npz"  # of another size, with other channels
    np.savez(grey, images=rng.integers(0, 256, (40, 20, 20), dtype=np.uint8), labels=np.arange(40) % 2)
    main(["evaluate", "--checkpoint", str(folder), "--transfer", str(grey), *QUICK])
    text = capsys.readouterr().out
    for row in ("kNN", "linear probe", "few-shot, 3 a class", "fine-tuned with 10 %", "alignment", "grey.npz: kNN"):
        assert row in text
    results = json.loads((folder / "evaluation.json").read_text())
    for name in ("h", "z"):
        values = results["features"][name]
        assert 0 <= values["knn"] <= 100
        assert 0 <= values["linear_probe"] <= 100
        assert values["few_shot"].keys() == {"1", "3"}
        assert results["views"][name].keys() == {"feature_std", "effective_rank", "alignment", "uniformity"}
    assert results["fine_tuned"]["0.1"]["labels"] == 9
    assert results["transfer"][str(grey)]["data"]["classes"] == 2
    for picture in ("map.png", "few_labels.png"):
        assert (folder / picture).stat().st_size > 10_000


def test_what_a_method_knows_beside_is_in_the_table(trained: Callable, capsys: pytest.CaptureFixture):
    folder = trained("clip", epochs=2)
    main(["evaluate", "--checkpoint", str(folder), "--templates", "{} stripes", "the {}", *QUICK])
    text = capsys.readouterr().out
    assert "zero shot" in text
    assert "text to image R@10" in text
    results = json.loads((folder / "evaluation.json").read_text())["of_the_method"]
    assert {"text_to_image_r10", "zero_shot", "beats_attribute"} <= results.keys()


def test_images_without_labels_are_evaluated_as_far_as_that_goes(trained: Callable, npz: Path, tmp_path: Path):
    with np.load(npz) as arrays:
        np.savez(tmp_path / "unlabelled.npz", images=arrays["images"])
    folder = trained("simclr", data=str(tmp_path / "unlabelled.npz"), epochs=1)
    main(["evaluate", "--checkpoint", str(folder), "--out", str(tmp_path / "elsewhere"), *QUICK])
    results = json.loads((tmp_path / "elsewhere" / "evaluation.json").read_text())
    assert "fine_tuned" not in results
    assert results["views"]["z"]["feature_std"] > 0


def test_a_checkpoint_that_is_none(trained: Callable, tmp_path: Path):
    folder = trained("simclr", epochs=1)
    path, flag = folder / "checkpoint.pt", "--checkpoint"
    state = torch.load(path, weights_only=True)
    assert "nothing at" in stopped(flag, str(tmp_path / "no"))
    torch.save(state | {"method": "dreams"}, path)
    assert "got dreams" in stopped(flag, str(folder))
    torch.save(state | {"config": state["config"] | {"width": 16}}, path)
    assert "the weights in" in stopped(flag, str(folder))
    torch.save({k: v for k, v in state.items() if k != "shape"}, path)
    assert "expected shape in" in stopped(flag, str(folder))
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot read" in stopped(flag, str(folder))


def test_data_that_cannot_be_evaluated_on(trained: Callable, npz: Path, tmp_path: Path):
    folder = str(trained("simclr", epochs=1))
    start = ("--checkpoint", folder, "--no-progress", "--data")
    assert "nothing at" in stopped(*start, str(tmp_path / "no"))
    half = tmp_path / "half.npz"
    half.write_bytes(npz.read_bytes()[:2000])
    assert "cannot read" in stopped(*start, str(half))
    with np.load(npz) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    more, one = tmp_path / "more.npz", tmp_path / "one.npz"
    np.savez(more, images=images, labels=labels, classes=["a", "b", "c", "d", "e"])
    assert "labelled training images of each of 5 classes" in stopped(*start, str(more))
    np.savez(one, images=images, labels=np.zeros_like(labels), classes=["a"])
    assert "expected at least 2 classes" in stopped(*start, str(one))
    assert not (Path(folder) / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shots", "0"], "shots: expected at least 1, got 0"),
        (["--fine-tune", "10"], "fine_tune: expected shares"),
        (["--fine-tune-epochs", "0"], "fine_tune_epochs: expected at least 1"),
        (["--templates", "a {}"], "templates: expected none"),
    ],
)
def test_settings_that_no_evaluation_can_have(trained: Callable, flags: list[str], said: str):
    assert said in stopped("--checkpoint", str(trained("simclr", epochs=1)), "--no-progress", *flags)


def test_a_checkpoint_without_its_settings(tmp_path: Path):
    torch.save({"format": 1, "method": "simclr", "config": {}, "shape": [3, 12, 12], "model": {}}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="expected the settings data"):
        load_method(tmp_path / "c.pt", METHODS)
