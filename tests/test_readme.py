"""The README shows code; it has to run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def test_links_lead_somewhere():
    root = Path(__file__).resolve().parents[1]
    for page in (root / "README.md", root / "docs/README.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
        assert links
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"
