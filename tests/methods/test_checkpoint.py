from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from methods.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    model = torch.nn.Linear(3, 2)
    save_checkpoint(path, {"epoch": 3, "model": model.state_dict()})
    state = load_checkpoint(path)
    assert state["epoch"] == 3
    assert torch.equal(state["model"]["weight"], model.weight)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match=r"No space left on device; the previous one is intact$"):
            save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_disk_that_is_full_halfway_leaves_the_last_good_one(tmp_path: Path):
    """Really written, in a process that may not make files of more than 100 kB."""
    path = tmp_path / "checkpoint.pt"
    code = """
import resource, signal, sys, torch
from pathlib import Path
from methods.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_checkpoint(Path(sys.argv[1]), {"epoch": 1, "weights": torch.ones(10_000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_checkpoint(Path(sys.argv[1]), {"epoch": 2, "weights": torch.ones(100_000)})
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("the previous one is intact")
    assert load_checkpoint(path)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_kill_left_half_written_is_in_nobodys_way(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    (tmp_path / "checkpoint.pt.tmp").write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path)["epoch"] == 1
    save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 2


ROOT = Path(__file__).resolve().parents[2]


class Danger:
    def __reduce__(self) -> tuple:
        return os.system, ("true",)


@pytest.mark.parametrize("content", ["half", "text", "code", "other"])
def test_files_that_are_no_checkpoint(tmp_path: Path, content: str):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    if content == "half":
        path.write_bytes(path.read_bytes()[:200])
    elif content == "text":
        path.write_text("not a checkpoint")
    elif content == "code":
        path.write_bytes(pickle.dumps(Danger(), protocol=2))
    else:
        torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"^checkpoint: [^\n]*checkpoint\.pt[^\n]*$"):
        load_checkpoint(path)
