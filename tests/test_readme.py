"""The README shows code; it has to run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ssl_kernels
from ssl_kernels.losses import LOSSES

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(code, capsys):
    exec(code, {"__name__": "readme"})
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_quickstart_is_short():
    assert BLOCKS
    assert len(BLOCKS[0].splitlines()) <= 20


def names_of(loss) -> set[str]:
    specs = loss.SPEC, *loss.SPEC.variants
    functions = [getattr(made, "func", made).__name__ for spec in specs for made in (spec.fused, spec.module)]
    return set(functions)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.SPEC.name)
def test_every_loss_is_in_the_table(loss):
    lines = [line for line in README.splitlines() if line.startswith("|") and "`, `" in line]
    (mine,) = [line for line in lines if all(f"`{name}`" in line for name in names_of(loss))]
    for name in names_of(loss):
        assert hasattr(ssl_kernels, name)
    paper = re.search(r"https://arxiv.org/abs/[0-9.]+", mine)
    assert paper and paper[0] in loss.__doc__


def test_links_lead_somewhere():
    root = Path(__file__).resolve().parents[1]
    for page in (root / "README.md", root / "docs/README.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
        assert links
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"
