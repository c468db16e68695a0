"""Two processes train as one does (gloo, on this machine)."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from methods.__main__ import METHODS
from methods.config import check
from methods.log import read_metrics
from methods.norms import GatheredBatchNorm, SplitBatchNorm, frozen_statistics, split
from methods.processes import mean_over_processes
from methods.simclr import SimCLR
from methods.train import Run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2


def of_images_alone(images: Tensor, views: int = 2) -> list[Tensor]:
    """Views without randomness: those of an image do not depend on which process it is given to."""
    x = images.double() / 255
    return [x if k == 0 else (0.5 * x + 0.5 * x.roll(k, 3)).flip(2 + k % 2) for k in range(views)]


def in_float64(method: type[nn.Module]) -> type[nn.Module]:
    class Exact(method):
        def __init__(self, *parts: Any, **more: Any) -> None:
            super().__init__(*parts, **more)
            self.double()

    return Exact


def trained(name: str, settings: dict[str, Any], frozen: bool) -> dict[str, Any]:
    """Losses and weights after two steps, in float64; ``frozen``: batch norms without batches."""
    run = Run(in_float64(METHODS[name]), METHODS[name].Config(**settings))
    run.augment = of_images_alone
    run.method.train(not frozen)
    losses = []
    for step, rows in zip(range(STEPS), run._order(0), strict=False):
        losses.append(mean_over_processes(run._step(step, rows)).item())
    state = dict(run.method.named_parameters()) | dict(run.method.named_buffers())
    return {"losses": losses} | {key: value.tolist() for key, value in state.items()}


def train_all(settings: dict[str, dict[str, Any]], cut: dict[str, Any]) -> dict[str, Any]:
    """Every method; and some whose batches are ``cut``, with a queue and with parameters of the loss among them."""
    found = {name: trained(name, settings[name], frozen=False) for name in METHODS}
    more = {f"{name}, cached": trained(name, settings[name] | cut, frozen=True) for name in ("simclr", "moco", "clip")}
    return found | more


def process(rank: int, file: str, settings: dict[str, Any], results: multiprocessing.Queue) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
        results.put((rank, train_all(settings, {"accumulate": 2, "grad_cache": True})))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))


def test_two_processes_have_the_losses_and_weights_of_one(settings_of: Callable, tmp_path: Path):
    """Every method: batch statistics, negatives, queues and gradients are those of the whole batch, cached or not."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "sync_batch_norm": True}
    settings = {name: settings_of(name, **plain) for name in METHODS}
    context = multiprocessing.get_context("spawn")
    results, file = context.Queue(), str(tmp_path / "store")
    started = [context.Process(target=process, args=(r, file, settings, results), daemon=True) for r in (0, 1)]
    for p in started:
        p.start()
    one = train_all(settings, {})
    for answer in [results.get(timeout=240)[1] for _ in started]:
        assert not isinstance(answer, str), answer
        for name, expected in one.items():
            assert answer[name].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    torch.tensor(answer[name][key]), torch.tensor(value), rtol=1e-6, atol=1e-8,
                    msg=lambda m, name=name, key=key: f"{name} {key}: {m}",
                )  # fmt: skip
    for p in started:
        p.join(30)


def test_torchrun_sees_what_one_process_sees_in_two_micro_batches(settings: Callable, tmp_path: Path):
    """The whole command, augmentations among them, with batch norms of each micro-batch in both."""
    flags = ["--data", settings()["data"], "--epochs", "2", "--batch-size", "32", "--width", "8", "--log-every", "1"]
    flags += ["--threads", "1", "--no-progress", "--no-linear-probe", "--no-sync-batch-norm", "--optimizer", "sgd"]
    flags += ["--lr", "0.1", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    cached = ["--accumulate", "2", "--grad-cache"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, start, more in (("two", torchrun, []), ("one", [sys.executable, "-m"], cached)):
        command = [*start, "methods", "simclr", *flags, "--out", str(tmp_path / name), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=240)
        assert done.returncode == 0, done.stderr
    two, one = (read_metrics(tmp_path / name, "train") for name in ("two", "one"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(4))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-3)
    assert len(read_metrics(tmp_path / "two", "eval")) == 2
    with pytest.raises(ValueError, match=r"processes 2 \(now 1\)"):
        resumed = {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "sync_batch_norm": False, "device": "cpu"}
        Run(SimCLR, SimCLR.Config(**settings(out=tmp_path / "two", resume=True, **resumed)))


def test_statistics_are_shared_or_split(settings: Callable):
    config = SimCLR.Config(**settings(bn_groups=2))
    check(config, processes=1)
    with pytest.raises(ValueError, match="^bn_groups: expected 1 beside sync_batch_norm, got 2"):
        check(config, processes=2)


# -------------------------------------------------------------------------------------------------------- batch norms
@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 3)])
def test_gathered_statistics_of_one_process_are_batch_norm(shape: tuple[int, ...]):
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5)
    nn.init.normal_(plain.weight)
    ours = GatheredBatchNorm(5)
    ours.load_state_dict(plain.state_dict())
    x = 3 + 2 * torch.randn(shape)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(a), plain(b))
    ours(a).square().sum().backward()
    plain(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_split_statistics_are_those_of_the_parts():
    model = split(nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)), nn.Flatten(), nn.BatchNorm1d(12, affine=False)), 2)
    assert [type(m) for m in (model[0][0], model[2])] == [SplitBatchNorm, SplitBatchNorm]
    x = torch.randn(8, 3, 2, 2)
    alone = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12, affine=False))
    torch.testing.assert_close(model(x), torch.cat([alone(part) for part in x.chunk(2)]))
    torch.testing.assert_close(model[2].running_mean, alone[2].running_mean)


def test_frozen_statistics_stay_as_they_are():
    norm = nn.BatchNorm1d(3)
    x = 5 + torch.randn(8, 3)
    with frozen_statistics(norm):
        y = norm(x)
    assert norm.running_mean.eq(0).all() and norm.num_batches_tracked == 0
    torch.testing.assert_close(y, norm(x))
    assert norm.running_mean.ne(0).all()
