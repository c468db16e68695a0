from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from methods.__main__ import METHODS, OTHERS, main, parse
from methods.config import check
from methods.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def stopped(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    return stop.value.code


def test_help_lists_methods_and_recipes(capsys: pytest.CaptureFixture):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*METHODS, *RECIPES, *OTHERS))


def test_the_readme_and_the_guide_have_every_method():
    readme, guide = ((ROOT / name).read_text() for name in ("README.md", "docs/methods.md"))
    for name, method in METHODS.items():
        assert f"`python -m methods {name} " in readme
        assert method.__name__.lower() in guide.replace("-", "").lower()


@pytest.mark.parametrize("name", sorted([*METHODS, "demo"]))
def test_help_of_a_method_explains_its_settings(name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--seed" in text
    assert "Of the weights" in text


def test_flags_win_over_the_recipe_and_the_recipe_over_the_defaults():
    config = parse("simclr", ["--recipe", "digits", "--epochs", "3", "--crop", "0.5", "0.9"])
    assert (config.epochs, config.crop, config.width) == (3, (0.5, 0.9), RECIPES["digits"]["simclr"]["width"])
    assert config.data == "digits"
    assert config.recipe == "digits"


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in RECIPES for method in RECIPES[name]])
def test_recipes_only_name_settings_that_exist(name: str, method: str):
    config = parse(method, ["--data", "digits", f"--recipe={name}"])
    assert config.recipe == name
    check(config, 1)


def test_wrong_words_get_one_line(tmp_path: Path):
    assert "method: expected simclr, " in (said := stopped("simclear")) and "got 'simclear'" in said
    assert "recipe: expected" in stopped("simclr", "--recipe", "cifar")
    assert "nothing at" in stopped("simclr", "--data", str(tmp_path / "no"))


def test_an_unavailable_backend_gets_one_line(settings: Callable, npz: Path, tmp_path: Path):
    message = stopped(
        "simclr", "--data", str(npz), "--batch-size", "8", "--loss-backend", "cuda", "--no-progress",
        "--device", "cpu", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert "backend='cuda' cannot serve cpu tensors" in message


def test_debug_shows_where_it_happened(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        main(["simclr", "--data", str(tmp_path / "no"), "--debug"])


def test_the_module_runs_as_a_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "methods", "simclr", "--data", str(tmp_path / "no")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: data: ")
