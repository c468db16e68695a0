"""What features are worth where labels are scarce: class means of a few, and fine-tuning with a part of them."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from methods.augment import Augment
from methods.data import Split
from methods.encoders import Encoder
from methods.evaluate import accuracy, features_of
from methods.schedule import warmup_cosine
from methods.seeds import seed_of

DRAWS = 20


def of_each_class(labels: Tensor, count: int | Tensor, generator: torch.Generator) -> Tensor:
    """Rows of ``count`` members of each class (of all, where there are fewer), drawn at random."""
    counts = torch.as_tensor(count).expand(int(labels.max()) + 1)
    members = [(labels == c).nonzero()[:, 0] for c in range(len(counts))]
    return torch.cat(
        [m[torch.randperm(len(m), generator=generator)[: int(k)]] for m, k in zip(members, counts, strict=True)]
    )


def few_shot(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, shots: int, draws: int = DRAWS
) -> tuple[float, float]:
    """Accuracy in per cent of the nearest class mean, from ``shots`` images a class (Snell et al. 2017).

    Mean and standard deviation over the draws, which are the same for all features.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    results = []
    for draw in range(draws):
        rows = of_each_class(train_labels, shots, torch.Generator().manual_seed(draw))
        labels = train_labels[rows].to(train.device)
        means = train.new_zeros(int(train_labels.max()) + 1, train.shape[1]).index_add(0, labels, train[rows])
        results.append(accuracy(test @ F.normalize(means, dim=1).T, test_labels.to(test.device)))
    values = torch.tensor(results)
    return values.mean().item(), values.std(correction=0).item()


def fraction_of(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Rows of this share of every class, at least one."""
    counts = (labels.bincount() * fraction).round().long().clamp_min(1)
    return of_each_class(labels, counts, torch.Generator().manual_seed(seed))


class FineTuning:
    """Trains a copy of an encoder, with a linear classifier on top, on some of the labelled images.

    AdamW, warm-up and cosine, the classifier at ten times the encoder's learning rate; crops, flips and no more.

    Args:
        epochs: passes over the images; more where these would be fewer than ``least_steps`` steps.
        seed: of the order, the crops and the flips.
    """

    def __init__(
        self,
        augment: Augment,
        device: torch.device,
        *,
        epochs: int,
        lr: float = 5e-4,
        batch_size: int = 128,
        least_steps: int = 100,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.augment, self.device, self.epochs, self.lr = augment, device, epochs, lr
        self.batch_size, self.least_steps, self.seed, self.progress = batch_size, least_steps, seed, progress

    def __call__(self, encoder: Encoder, train: Split, test: Split, rows: Tensor, classes: int) -> float:
        """Accuracy in per cent on the test images after training on ``rows`` of the others."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.seed, "fine-tuning"))
            classifier = nn.Linear(encoder.dim, classes)
            model = nn.Sequential(copy.deepcopy(encoder), classifier).to(self.device).requires_grad_()
            self._fit(model, train, rows)
            return accuracy(features_of(model, test.images, self.device), test.labels.to(self.device))

    def _fit(self, model: nn.Sequential, train: Split, rows: Tensor) -> None:
        size = min(self.batch_size, len(rows))
        per_epoch = max(1, len(rows) // size)
        total = max(self.epochs * per_epoch, self.least_steps)
        groups = [{"params": part.parameters(), "lr": k * self.lr} for part, k in zip(model, (1, 10), strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total, total // 20))
        model.train()
        for step in tqdm(range(total), f"fine-tuning, {len(rows)} labels", disable=not self.progress, leave=False):
            if step % per_epoch == 0:
                order = rows[torch.randperm(len(rows))]
            part = order[step % per_epoch * size :][:size]
            (views,) = self.augment(train.images[part].to(self.device), 1)
            loss = F.cross_entropy(model(views), train.labels[part].to(self.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
