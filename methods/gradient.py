"""The gradient of a step: micro-batches, mixed precision, processes, and the whole batch's loss where it is asked for.

A micro-batch is a function that seeds torch's generators and then draws the augmentations: called a second time, it
gives the same images, and leaves the generators so that dropout, too, draws the same again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from methods.batch import Batch
from methods.norms import frozen_statistics
from methods.processes import world_size

# Statistics of batches are each process's own, or, synchronised, the same everywhere: nothing to send before every
# forward pass. Of the two names, torch 2.13 warns of the second, and torch before it does not know the first.
BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Gradient:
    """Puts the mean gradient over all processes into a method's parameters.

    Args:
        method: ``method(batch)`` are embeddings, ``method.loss(embeddings, batch)`` compares them.
        precision: of autocast, a key of ``PRECISIONS``; fp16's gradients are scaled by ``scaler``.
        whole: one loss of the whole batch (:meth:`cached`) instead of one for each micro-batch (:meth:`summed`).
    """

    def __init__(self, method: nn.Module, device: torch.device, precision: str, whole: bool) -> None:
        self.method = method
        self.network: nn.Module = method
        if world_size() > 1:
            devices = [device] if device.type == "cuda" else None
            staged = hasattr(method, "before_step")  # not all of its parameters are trained all the time
            self.network = DistributedDataParallel(method, devices, find_unused_parameters=staged, **{BUFFERS: False})
        self.device, self.dtype = device, PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.of = self.cached if whole else self.summed

    def summed(self, parts: Sequence[Callable[[], Batch]]) -> Tensor:
        """The mean of the losses of the micro-batches, each among its own samples only."""
        losses = []
        for part in parts:
            with self._exchange(part is parts[-1]):
                batch = part()
                with self._autocast():
                    loss = self.method.loss(self.network(batch), batch) / len(parts)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def cached(self, parts: Sequence[Callable[[], Batch]]) -> Tensor:
        """The loss of the whole batch, and its exact gradient, in the memory of one micro-batch.

        Embed without a graph; differentiate the loss by the embeddings; embed again, and go on from their gradients
        (Gao et al. 2021, https://arxiv.org/abs/2101.06983).
        """
        rows, batches = [], []
        with torch.no_grad(), frozen_statistics(self.method):
            for part in parts:
                batch = part()
                with self._autocast():
                    rows.append(self.method(batch))
                batches.append(Batch.whole([batch]))
        whole = [torch.cat(z).requires_grad_() for z in zip(*rows, strict=True)]
        with self._autocast():
            loss = self.method.loss(whole, Batch.whole(batches))
        self.scaler.scale(loss).backward()
        # Parameters of the loss itself have theirs now; the others wait for them, to be exchanged together
        own = [(p, p.grad) for p in self.method.parameters() if p.grad is not None]
        for p, _ in own:
            p.grad = None
        sizes = [len(z[0]) for z in rows]
        grads = [[None] * len(parts) if z.grad is None else z.grad.split(sizes) for z in whole]
        for k, part in enumerate(parts):
            last = k == len(parts) - 1
            with self._exchange(last):
                batch = part()
                with self._autocast():
                    embeddings = self.network(batch)
                pairs = [(z, g[k]) for z, g in zip(embeddings, grads, strict=True) if z.requires_grad]
                pairs = [(z, g) for z, g in pairs + (own if last else []) if g is not None]
                torch.autograd.backward(*zip(*pairs, strict=True))
        return loss.detach()

    def _exchange(self, now: bool) -> AbstractContextManager:
        """Processes exchange their gradients once a step, during the last backward pass."""
        return nullcontext() if now or self.network is self.method else self.network.no_sync()

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
