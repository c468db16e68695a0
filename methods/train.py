"""The one training loop, for one process or those of ``torchrun``.

What it asks of a method stands in :mod:`methods`. A step is

    embeddings = method(batch)                     for each micro-batch; a list of tensors, one row a sample
    loss       = method.loss(embeddings, batch)    for each micro-batch, or once for the whole batch (--grad-cache)
    optimizer.step()
    method.after_step(step, total)                 where there is one: momentum encoders

Everything random in a step (order of the images, augmentations, dropout) is drawn from a seed that is a function of the
run's seed and of the position: the step, and the micro-batch among those of all processes. So a checkpoint needs no
generator state, evaluations cannot disturb training, a run that was killed goes on from its last checkpoint to the very
weights it would have reached, and two processes see what one sees in two micro-batches.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from methods.augment import Augment
from methods.batch import Batch
from methods.checkpoint import load_checkpoint, save_checkpoint
from methods.config import FREE, Config, check
from methods.data import load_data
from methods.encoders import Encoder, build_encoder
from methods.evaluate import accuracy, collapse_monitor, features_of, knn_scores, linear_probe
from methods.gradient import Gradient
from methods.log import Log
from methods.norms import split, synchronised
from methods.optim import build_optimizer
from methods.processes import device_of, mean_over_processes, processes, rank, world_size
from methods.schedule import cosine, warmup_cosine
from methods.seeds import seed_of
from methods.tokenizer import build_tokenizer

MONITORED = 1024


def train(method_class: type[nn.Module], config: Config) -> dict[str, Any]:
    """Trains a method as ``config`` says; returns the results, which also stand in ``results.json`` in its folder."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), processes(config.device):
        run = Run(method_class, config)
        with Log(run.folder, config.tensorboard, run.step, mute=rank() > 0) as log:
            run.fit(log)
            return run.finish(log)


class Run:
    """Everything a run owns: data, method, optimiser, its folder, and how far it is."""

    def __init__(self, method_class: type[nn.Module], config: Config) -> None:
        check(config, world_size())
        self.config = config
        self.name = method_class.__name__.lower()
        self.folder = config.out or Path("runs") / self.name
        self.checkpoint = self.folder / "checkpoint.pt"
        self.shows = config.progress and rank() == 0
        if self.checkpoint.exists() and not config.resume:
            raise ValueError(f"out: {self.folder} holds a run; --resume goes on with it, another --out starts one")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = device_of(config.device)
        self.data = load_data(
            config.data, image_size=config.image_size, skip_broken=config.skip_broken, progress=self.shows
        )
        for needed in getattr(method_class, "needs", ()):
            if getattr(self.data.train, needed) is None:
                raise ValueError(f"data: expected {needed} in {config.data!r}, without which {self.name} cannot learn")
        if config.batch_size > len(self.data.train):
            have = len(self.data.train)
            raise ValueError(f"batch_size: expected at most the {have} training images, got {config.batch_size}")
        self.steps_per_epoch = len(self.data.train) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.warmup = round(self.steps_per_epoch * config.warmup_epochs)

        torch.manual_seed(seed_of(config.seed, "weights"))
        mean, std = self.data.statistics()
        encoder = build_encoder(
            config.encoder,
            self.data.image_size,
            mean,
            std,
            channels_last=config.channels_last,
            width=config.width,
            patch_size=config.patch_size,
        )
        parts = {}
        if "captions" in getattr(method_class, "needs", ()):
            parts["tokenizer"] = build_tokenizer(
                config.tokenizer, self.data.train.captions, config.vocab_size, config.context
            )
        method = method_class(encoder, config, **parts).to(self.device)
        if config.sync_batch_norm and world_size() > 1:
            method = synchronised(method, self.device)
        elif config.bn_groups > 1:
            method = split(method, config.bn_groups)
        self.method = method
        self.augment = Augment(config, self.data.image_size, self.data.channels)
        for size in self.augment.sizes:
            encoder.check(size)
        self.optimizer = build_optimizer(
            config.optimizer, self.method, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.gradient = Gradient(method, self.device, config.precision, config.grad_cache)
        self.epoch = 0
        if self.checkpoint.exists():
            self._restore(load_checkpoint(self.checkpoint))
        if config.compile:
            for module in method.modules():
                if isinstance(module, Encoder):
                    module.compile()
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            (self.folder / "config.json").write_text(json.dumps(self._settings(), indent=2) + "\n")

    def _settings(self) -> dict[str, Any]:
        return {"method": self.name, "processes": world_size(), **self.config.as_dict()}

    @property
    def step(self) -> int:
        """Optimiser steps taken by the end of the last whole epoch."""
        return self.epoch * self.steps_per_epoch

    # ------------------------------------------------------------------------------------------------------- steps
    def fit(self, log: Log) -> None:
        """From ``self.epoch`` to the last one. A checkpoint stands for everything before the epoch in it."""
        config, started, news = self.config, time.perf_counter(), ""
        with tqdm(total=self.total, initial=self.step, disable=not self.shows, unit="step") as bar:
            for epoch in range(self.epoch, config.epochs):
                for k, rows in enumerate(self._order(epoch)):
                    step = epoch * self.steps_per_epoch + k
                    loss = self._step(step, rows)
                    bar.update()
                    if step % config.log_every == 0 or step == self.total - 1:
                        value = mean_over_processes(loss).item()
                        if not math.isfinite(value):
                            raise ValueError(f"loss: expected a finite number, got {value} in step {step}; lower --lr?")
                        lr = self.optimizer.param_groups[0]["lr"]
                        log("train", step, epoch=epoch, loss=value, lr=lr, seconds=_since(started))
                        bar.set_postfix_str(f"loss {value:.3f} {news}")
                self.epoch = epoch + 1
                last = self.epoch == config.epochs
                if rank() > 0:
                    continue
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
        """One optimiser step; returns the loss of this process, not waited for."""
        config, scaler = self.config, self.gradient.scaler
        begin = getattr(self.method, "before_step", warmup_cosine)
        factor = begin(step, self.total, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        if config.final_weight_decay is not None:
            decayed, _ = self.optimizer.param_groups  # biases and norms have none
            decayed["weight_decay"] = cosine(step, self.total, config.weight_decay, config.final_weight_decay)
        self.optimizer.zero_grad(set_to_none=True)
        numbered = list(enumerate(rows.chunk(world_size() * config.accumulate)))
        mine = numbered[rank() * config.accumulate :][: config.accumulate]
        loss = self.gradient.of([partial(self._batch, step, number, part) for number, part in mine])
        if hasattr(self.method, "after_backward"):
            self.method.after_backward()
        if config.clip_gradient:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.method.parameters(), config.clip_gradient)
        scaler.step(self.optimizer)
        scaler.update()
        if hasattr(self.method, "after_step"):
            self.method.after_step(step, self.total)
        return loss

    def _batch(self, step: int, number: int, rows: Tensor) -> Batch:
        """Micro-batch ``number`` of a step, of all processes': the same one, and the same dropout, at every call."""
        torch.manual_seed(seed_of(self.config.seed, "step", step + number * self.total))
        data = self.data.train
        views = self.augment(data.images[rows].to(self.device))
        of_rows = lambda column: None if column is None else column[rows].to(self.device)  # noqa: E731
        captions = None if data.captions is None else [data.captions[row] for row in rows.tolist()]
        seeds = [seed_of(self.config.seed, "sample", step, number * len(rows) + k) for k in range(len(rows))]
        return Batch(views, of_rows(data.labels), captions, of_rows(data.ids), seeds)

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
                z_bank, z_queries = (
                    features_of(self.method, s.images, self.device, self.method.embed) for s in (data.train, data.test)
                )
                scores = knn_scores(z_queries, z_bank, labels, classes, config.knn_k, config.knn_temperature)
                values["knn_of_projection"] = accuracy(scores, data.test.labels.to(self.device))
                values["linear_probe"] = linear_probe(bank, data.train.labels, queries, data.test.labels)
        if hasattr(self.method, "measure"):
            values |= self.method.measure(data, self.folder if probe else None)
        torch.manual_seed(seed_of(config.seed, "monitor"))
        views = self.augment(data.test.images[:MONITORED].to(self.device), 2)
        self.method.eval()
        values |= collapse_monitor(self.method.embed, views)
        self.method.train()
        if values["feature_std"] < 0.1:
            tqdm.write(f"epoch {self.epoch}: the embeddings collapse, feature_std {values['feature_std']:.3f}")
        return values

    def finish(self, log: Log) -> dict[str, Any]:
        """The final evaluation, logged and written to ``results.json``."""
        if rank() > 0:
            return {}
        values = self.evaluate(self.config.linear_probe)
        log("eval", self.step, epoch=self.epoch, **values)
        results = {"method": self.name, "data": self.data.name, "epochs": self.epoch, **values}
        (self.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        return results

    # -------------------------------------------------------------------------------------------------- checkpoint
    def _save(self) -> None:
        state = {
            "method": self.name,
            "config": self._settings(),
            "data": self.data.fingerprint(),
            "shape": list(self.data.train.images.shape[1:]),
            "epoch": self.epoch,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.gradient.scaler.state_dict(),
        }
        save_checkpoint(self.checkpoint, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["method"] != self.name:
            raise ValueError(f"resume: expected a checkpoint of {self.name} in {self.folder}, got {state['method']}")
        mine = self._settings()
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
        self.gradient.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
