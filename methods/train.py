"""The one training loop.

Everything random in a step (order of the images, augmentations, dropout) is drawn from a seed that is a function of the
run's seed and of the position. So a checkpoint needs no generator state, evaluations cannot disturb training, and a run
that was killed goes on from its last checkpoint to the very weights it would have reached.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from methods.augment import Augment
from methods.checkpoint import load_checkpoint, save_checkpoint
from methods.config import FREE, Config, check
from methods.data import load_data
from methods.encoders import build_encoder
from methods.evaluate import accuracy, collapse_monitor, features_of, knn_scores, linear_probe
from methods.log import Log
from methods.optim import build_optimizer
from methods.schedule import warmup_cosine
from methods.seeds import seed_of

MONITORED = 1024


def train(method_class: type[nn.Module], config: Config) -> dict[str, Any]:
    """Trains a method as ``config`` says; returns the results, which also stand in ``results.json`` in its folder."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        run = Run(method_class, config)
        with Log(run.folder, config.tensorboard, run.step) as log:
            run.fit(log)
            return run.finish(log)


class Run:
    """Everything a run owns: data, method, optimiser, its folder, and how far it is."""

    def __init__(self, method_class: type[nn.Module], config: Config) -> None:
        check(config)
        self.config = config
        self.name = method_class.__name__.lower()
        self.folder = config.out or Path("runs") / self.name
        self.checkpoint = self.folder / "checkpoint.pt"
        if self.checkpoint.exists() and not config.resume:
            raise ValueError(f"out: {self.folder} holds a run; --resume goes on with it, another --out starts one")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = _device(config.device)
        self.data = load_data(
            config.data, image_size=config.image_size, skip_broken=config.skip_broken, progress=config.progress
        )
        if config.batch_size > len(self.data.train):
            have = len(self.data.train)
            raise ValueError(f"batch_size: expected at most the {have} training images, got {config.batch_size}")
        self.steps_per_epoch = len(self.data.train) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.warmup = round(self.steps_per_epoch * config.warmup_epochs)

        torch.manual_seed(seed_of(config.seed, "weights"))
        mean, std = self.data.statistics()
        encoder = build_encoder(
            config.encoder, self.data.image_size, mean, std, channels_last=config.channels_last, width=config.width
        )
        self.method = method_class(encoder, config).to(self.device)
        self.augment = Augment(config, self.data.image_size, self.data.channels)
        self.optimizer = build_optimizer(
            config.optimizer, self.method, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.epoch = 0
        if self.checkpoint.exists():
            self._restore(load_checkpoint(self.checkpoint))
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps({"method": self.name, **config.as_dict()}, indent=2) + "\n")

    @property
    def step(self) -> int:
        """Optimiser steps taken by the end of the last whole epoch."""
        return self.epoch * self.steps_per_epoch

    # ------------------------------------------------------------------------------------------------------- steps
    def fit(self, log: Log) -> None:
        """From ``self.epoch`` to the last one. A checkpoint stands for everything before the epoch in it."""
        config, started, news = self.config, time.perf_counter(), ""
        with tqdm(total=self.total, initial=self.step, disable=not config.progress, unit="step") as bar:
            for epoch in range(self.epoch, config.epochs):
                for k, rows in enumerate(self._order(epoch)):
                    step = epoch * self.steps_per_epoch + k
                    loss = self._step(step, rows)
                    bar.update()
                    if step % config.log_every == 0 or step == self.total - 1:
                        value = loss.item()
                        if not math.isfinite(value):
                            raise ValueError(f"loss: expected a finite number, got {value} in step {step}; lower --lr?")
                        lr = self.optimizer.param_groups[0]["lr"]
                        log("train", step, epoch=epoch, loss=value, lr=lr, seconds=_since(started))
                        bar.set_postfix_str(f"loss {value:.3f} {news}")
                self.epoch = epoch + 1
                last = self.epoch == config.epochs
                if not last and config.knn_every and self.epoch % config.knn_every == 0:
                    values = self.evaluate()
                    log("eval", self.step, epoch=self.epoch, **values)
                    news = f"kNN {values['knn']:.1f} %" if "knn" in values else ""
                if last or self.epoch % config.save_every == 0:
                    log.sync()
                    self._save()

    def _order(self, epoch: int) -> list[Tensor]:
        """The images of each step of an epoch; those that do not fill a batch wait for another epoch."""
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, "order", epoch))
        order = torch.randperm(len(self.data.train), generator=generator)
        return list(order[: self.steps_per_epoch * self.config.batch_size].split(self.config.batch_size))

    def _step(self, step: int, rows: Tensor) -> Tensor:
        """One optimiser step; returns the loss, not waited for."""
        config = self.config
        torch.manual_seed(seed_of(config.seed, "step", step))
        factor = warmup_cosine(step, self.total, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in rows.chunk(config.accumulate):
            views = self.augment(self.data.train.images[part].to(self.device), config.views)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = self.method.loss(views) / config.accumulate
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        return total

    # -------------------------------------------------------------------------------------------------- evaluation
    def evaluate(self, probe: bool = False) -> dict[str, float]:
        """kNN accuracy of the encoder (where there are labels) and the collapse monitor, on the test images.

        With ``probe``, the accuracy of a linear classifier too.
        """
        values = {}
        data, config = self.data, self.config
        if data.labelled:
            bank, queries = (features_of(self.method.encoder, s.images, self.device) for s in (data.train, data.test))
            labels, classes = data.train.labels.to(self.device), len(data.classes)
            scores = knn_scores(queries, bank, labels, classes, config.knn_k, config.knn_temperature)
            values["knn"] = accuracy(scores, data.test.labels.to(self.device))
            if probe:
                values["linear_probe"] = linear_probe(bank, data.train.labels, queries, data.test.labels)
        torch.manual_seed(seed_of(config.seed, "monitor"))
        views = self.augment(data.test.images[:MONITORED].to(self.device))
        self.method.eval()
        values |= collapse_monitor(self.method.embed, views)
        self.method.train()
        if values["feature_std"] < 0.1:
            tqdm.write(f"epoch {self.epoch}: the embeddings collapse, feature_std {values['feature_std']:.3f}")
        return values

    def finish(self, log: Log) -> dict[str, Any]:
        """The final evaluation, logged and written to ``results.json``."""
        values = self.evaluate(self.config.linear_probe)
        log("eval", self.step, epoch=self.epoch, **values)
        results = {"method": self.name, "data": self.data.name, "epochs": self.epoch, **values}
        (self.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        return results

    # -------------------------------------------------------------------------------------------------- checkpoint
    def _save(self) -> None:
        state = {
            "method": self.name,
            "config": self.config.as_dict(),
            "data": self.data.fingerprint(),
            "epoch": self.epoch,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(self.checkpoint, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["method"] != self.name:
            raise ValueError(f"resume: expected a checkpoint of {self.name} in {self.folder}, got {state['method']}")
        mine = self.config.as_dict()
        other = [
            f"{k} {state['config'].get(k)} (now {mine.get(k)})"
            for k in sorted(mine.keys() | state["config"].keys())
            if k not in FREE and mine.get(k) != state["config"].get(k)
        ]
        if other:
            raise ValueError(f"resume: expected the settings of the run in {self.folder}, which had {', '.join(other)}")
        if state["data"] != self.data.fingerprint():
            wanted, got = state["data"], self.data.fingerprint()
            raise ValueError(f"resume: expected the training images of the run in {self.folder} ({wanted}), got {got}")
        self.method.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected auto, cpu or a GPU that is here, got {name!r}: {reason}") from error
    return device


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
