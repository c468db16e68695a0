from __future__ import annotations

import re
from pathlib import Path

import pytest

from methods.demo import Demo, demo, free


def test_demo_ends_with_a_picture_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("matplotlib")
    demo(Demo(out=tmp_path / "demo", epochs=1))
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 20_000
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("one label per class")
    accuracy = {
        name: float(value) for name, value in re.findall(r"(learned|raw pixels|random weights) ([\d.]+) ±", last)
    }
    assert accuracy["learned"] > accuracy["random weights"]
    assert accuracy["raw pixels"] == pytest.approx(62.6, abs=3)


def test_a_second_demo_leaves_the_first_alone(tmp_path: Path):
    assert free(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
    assert free(tmp_path / "demo") == tmp_path / "demo-3"
