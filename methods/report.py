"""``python -m methods evaluate``: what there is to know about a checkpoint, in one table, one JSON and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from methods import pictures
from methods.augment import Augment
from methods.config import Config
from methods.data import Data, Split, load_data
from methods.evaluate import accuracy, collapse_monitor, features_of, knn_scores, linear_probe
from methods.few_labels import FineTuning, few_shot, fraction_of
from methods.load import load_method
from methods.processes import device_of
from methods.seeds import seed_of

MAPPED = 2000
MONITORED = 1024


@dataclass(frozen=True)
class Evaluate:
    """What a checkpoint has learned: nearest neighbours, linear and few-shot classifiers, fine-tuning, transfer."""

    checkpoint: Path
    """A checkpoint, or the folder of a run."""
    data: str | None = None
    """As in training; default: the data of the run."""
    transfer: tuple[str, ...] = ()
    """Other data sets, on which the frozen features are tried too."""
    out: Path | None = None
    """Folder for evaluation.json and the pictures; default: that of the checkpoint."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    shots: tuple[int, ...] = (1, 5, 20)
    """Labelled images a class for the few-shot classifier; --shots alone leaves it out."""
    fine_tune: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Shares of the labels to fine-tune with; --fine-tune alone leaves it out."""
    fine_tune_epochs: int = 20
    """Passes over the labelled images; small shares take more, to get 100 steps."""
    templates: tuple[str, ...] = ()
    """For models of images and texts: sentences around the names of classes; default: those of the run."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0: as torch decides."""
    seed: int = 0
    """Of the labels that are drawn, the views and the fine-tuning."""
    progress: bool = True
    """Show progress bars."""
    debug: bool = False
    """On an error, print the whole traceback instead of one line."""


def evaluate(settings: Evaluate, methods: Mapping[str, type[nn.Module]]) -> dict[str, Any]:
    """Evaluates, prints the table, writes ``evaluation.json`` and the pictures; returns what is in the JSON."""
    _check(settings)
    method, config, state = load_method(settings.checkpoint, methods)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        report = Report(method, config, state["shape"], settings)
        results = {"method": state["method"], "epoch": state["epoch"], **report.everything()}
    (report.out / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    print(f"in {report.out}: {', '.join(sorted(['evaluation.json', *report.drawn]))}")
    return results


def _check(settings: Evaluate) -> None:
    for name, values in (("shots", settings.shots), ("fine_tune_epochs", (settings.fine_tune_epochs,))):
        if any(value < 1 for value in values):
            raise ValueError(f"{name}: expected at least 1, got {min(values)}")
    for share in settings.fine_tune:
        if not 0 < share <= 1:
            raise ValueError(f"fine_tune: expected shares above 0 and up to 1, got {share}")


class Report:
    """The measurements on one method: ``h`` is what its encoder gives, ``z`` what its loss compares."""

    def __init__(self, method: nn.Module, config: Config, shape: list[int], settings: Evaluate) -> None:
        self.settings, self.shape = settings, shape
        self.device = device_of(settings.device)
        self.method = method.to(self.device)
        if settings.templates:
            if not hasattr(config, "templates"):
                raise ValueError("templates: expected none for a method without captions")
            config = self.method.config = replace(config, templates=settings.templates)
        self.config = config
        at = settings.checkpoint
        self.out = settings.out or (at if at.is_dir() else at.parent)
        # What can be missing is asked for now, and not after the long fine-tuning
        pictures.pyplot()
        self.data = self._load(settings.data or config.data)
        self.others = {source: self._load(source) for source in settings.transfer}
        self.out.mkdir(parents=True, exist_ok=True)
        self.drawn: list[str] = []

    def everything(self) -> dict[str, Any]:
        data = self.data
        features = self._features(data)
        results = {"data": _described(data), "features": self._frozen(data, features)}
        if data.labelled and self.settings.fine_tune:
            results["fine_tuned"] = self._fine_tuned()
        results["views"] = self._views()
        if hasattr(self.method, "measure"):
            results["of_the_method"] = self.method.measure(data, self.out)
        results["transfer"] = {
            source: {"data": _described(other), "features": self._frozen(other, self._features(other))}
            for source, other in self.others.items()
        }
        self._pictures(features, results)
        return results

    def _load(self, source: str) -> Data:
        """The data set, in the size and with the channels that the encoder knows."""
        channels, size, _ = self.shape
        settings = self.settings
        data = load_data(source, image_size=size, skip_broken=settings.skip_broken, progress=settings.progress)
        if data.labelled:
            _check_classes(data, source)
        parts = [replace(part, images=_fitted(part.images, channels, size)) for part in (data.train, data.test)]
        return replace(data, train=parts[0], test=parts[1])

    # -------------------------------------------------------------------------------------------------- measurements
    def _features(self, data: Data) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the training and the test images, by name."""
        of = {"h": self.method.encoder, "z": self.method.embed}
        features = {}
        for name, embed in of.items():
            features[name] = tuple(self._embedded(embed, part, f"{name} of {data.name}") for part in _parts(data))
        features["pixels"] = tuple(part.images.flatten(1).float() - 127.5 for part in _parts(data))
        return features

    def _embedded(self, embed: Callable[[Tensor], Tensor], part: Split, what: str) -> Tensor:
        chunks = tqdm(part.images.split(1024), what, disable=not self.settings.progress, leave=False)
        return torch.cat([features_of(self.method, images, self.device, embed).cpu() for images in chunks])

    def _frozen(self, data: Data, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, Any]]:
        if not data.labelled:
            return {}
        return {name: self._classified(data, name, *pair) for name, pair in features.items()}

    def _classified(self, data: Data, name: str, bank: Tensor, queries: Tensor) -> dict[str, Any]:
        labels, truth, config = data.train.labels, data.test.labels, self.config
        scores = knn_scores(queries, bank, labels, len(data.classes), config.knn_k, config.knn_temperature)
        values: dict[str, Any] = {"knn": accuracy(scores, truth)}
        if name != "pixels":  # of which there are too many to fit one in good time
            values["linear_probe"] = linear_probe(bank, labels, queries, truth)
        values["few_shot"] = {str(n): few_shot(bank, labels, queries, truth, n) for n in self.settings.shots}
        return values

    def _fine_tuned(self) -> dict[str, dict[str, float]]:
        data, settings = self.data, self.settings
        channels, size, _ = self.shape
        smallest, largest = self.config.crop
        crop = (min(max(smallest, 0.5), largest), largest)
        # of the first view, which is never solarized
        light = replace(self.config, crop=crop, view_size=None, jitter=0.0, grey=0.0, blur=0.0)
        tune = FineTuning(
            Augment(light, size, channels),
            self.device,
            epochs=settings.fine_tune_epochs,
            seed=settings.seed,
            progress=settings.progress,
        )
        values = {}
        for share in settings.fine_tune:
            rows = fraction_of(data.train.labels, share, settings.seed)
            reached = tune(self.method.encoder, data.train, data.test, rows, len(data.classes))
            values[f"{share:g}"] = {"labels": len(rows), "accuracy": reached}
        return values

    def _views(self) -> dict[str, dict[str, float]]:
        """Alignment and uniformity under the augmentations of training."""
        channels, size, _ = self.shape
        torch.manual_seed(seed_of(self.settings.seed, "monitor"))
        views = Augment(self.config, size, channels)(self.data.test.images[:MONITORED].to(self.device), 2)
        return {
            "h": collapse_monitor(self.method.encoder, views),
            "z": collapse_monitor(self.method.embed, views),
        }

    # ------------------------------------------------------------------------------------------------------ pictures
    def _pictures(self, features: dict[str, tuple[Tensor, Tensor]], results: dict[str, Any]) -> None:
        test = self.data.test
        rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:MAPPED]
        points = {}
        for name, what in (("h", "features h"), ("z", "embeddings z")):
            z = features[name][1][rows]
            flat = z if z.shape[1] == 2 else pictures.tsne(z)
            if flat is not None:
                points[f"{what} ({'as they are' if flat is z else 't-SNE'})"] = flat
        if points:
            labels = None if test.labels is None else test.labels[rows]
            pictures.maps(self.out / "map.png", points, labels, self.data.classes)
            self.drawn.append("map.png")
        lines = {
            f"{name}, nearest class mean": {int(n): v for n, v in values["few_shot"].items()}
            for name, values in results["features"].items()
            if values["few_shot"]
        }
        tuned = results.get("fine_tuned", {}).values()
        if tuned:
            lines["fine-tuned"] = {v["labels"] / len(self.data.classes): v["accuracy"] for v in tuned}
        if lines:
            pictures.curves(self.out / "few_labels.png", lines, "labels per class", "test accuracy, %")
            self.drawn.append("few_labels.png")


def _parts(data: Data) -> tuple[Split, Split]:
    return data.train, data.test


def _described(data: Data) -> dict[str, Any]:
    return {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": len(data.classes)}


def _check_classes(data: Data, source: str) -> None:
    counts = data.train.labels.bincount(minlength=len(data.classes))
    empty = [name for name, n in zip(data.classes, counts.tolist(), strict=True) if n == 0]
    if empty:
        names = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"data: expected labelled training images of each of {len(data.classes)} classes in {source!r}, got none of"
            f" {names}"
        )
    if len(data.classes) < 2:
        raise ValueError(f"data: expected at least 2 classes in {source!r}, got {len(data.classes)}")


def _fitted(images: Tensor, channels: int, size: int) -> Tensor:
    """uint8 images with so many channels, so large."""
    if images.shape[1] != channels:
        images = images.expand(-1, 3, -1, -1) if channels == 3 else images.float().mean(1, keepdim=True).to(torch.uint8)
    if images.shape[-1] == size:
        return images.contiguous()
    parts = [F.interpolate(part.float(), (size, size), mode="bicubic", antialias=True) for part in images.split(1024)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


# ------------------------------------------------------------------------------------------------------------ table
COLUMNS = ("h", "z", "pixels")


def table(results: dict[str, Any]) -> str:
    """The results for a terminal: a row a measurement, a column for what it was made on."""
    rows = _rows_of(results["features"])
    for share, value in results.get("fine_tuned", {}).items():
        what = f"fine-tuned with {100 * float(share):g} % ({value['labels']} labels)"
        rows.append([what, f"{value['accuracy']:.1f}"])
    for name in ("alignment", "uniformity", "effective_rank"):
        what = f"{name.replace('_', ' ')} of views"
        rows.append([what, *(f"{results['views'][k][name]:.2f}" for k in ("h", "z"))])
    for name, value in results.get("of_the_method", {}).items():
        what = re.sub(r" r(\d+)$", r" R@\1", name.replace("_", " "))
        rows.append([what, "", f"{value:.1f}" if isinstance(value, float) else str(value)])
    for source, other in results["transfer"].items():
        rows += [[f"{source}: {row[0]}", *row[1:]] for row in _rows_of(other["features"])]
    width = max(len(row[0]) for row in rows)
    d = results["data"]
    head = f"{results['method']}, epoch {results['epoch']}, on {d['name']} ({d['train']} + {d['test']}), per cent"
    lines = [head, " " * width + "".join(f"{name:>14}" for name in COLUMNS)]
    return "\n".join([*lines, *(f"{row[0]:{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)])


def _rows_of(features: dict[str, dict[str, Any]]) -> list[list[str]]:
    if not features:
        return []
    cell = lambda name, key: f"{features[name][key]:.1f}" if key in features[name] else ""  # noqa: E731
    rows = [["kNN", *(cell(name, "knn") for name in COLUMNS)]]
    rows.append(["linear probe", *(cell(name, "linear_probe") for name in COLUMNS)])
    for n in features["h"]["few_shot"]:
        pairs = [features[name]["few_shot"][n] for name in COLUMNS]
        rows.append([f"few-shot, {n} a class", *(f"{mean:.1f} ± {std:.1f}" for mean, std in pairs)])
    return rows
