"""MoCo's builder (``moco/builder.py``), v1 and v2, on any device and with or without ``torch.distributed``.

Buffers are called as there (``queue``, ``[dim, K]``, and ``queue_ptr``), so that old checkpoints load. Beside
``forward``, which returns all logits, ``loss`` gives the same loss without them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.ema import ema_update_
from ssl_kernels.losses import info_nce_loss
from ssl_kernels.losses.gather import gather_rows, shuffle_rows, unshuffle_rows, world_size
from ssl_kernels.ops import enqueue_


class MoCo(nn.Module):
    """A query encoder, a key encoder that follows it, and a queue of keys (https://arxiv.org/abs/1911.05722).

    Args:
        base_encoder: makes an encoder; called as ``base_encoder(num_classes=dim)``.
        dim: width of the embeddings.
        K: rows of the queue. Batches of any size enter it, going round its end.
        m: momentum of the key encoder.
        T: temperature.
        mlp: MoCo v2's head: a hidden layer before the encoder's ``fc``.
        backend: as in :func:`ssl_kernels.info_nce_loss`.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.backend = backend
        self.encoder_q = base_encoder(num_classes=dim)
        if mlp:
            fc: Any = self.encoder_q.fc
            width = fc.weight.shape[1]
            self.encoder_q.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), fc)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        # a row of memory a key, seen through a transpose under the shape that checkpoints have
        self.register_buffer("queue", F.normalize(torch.randn(K, dim), dim=1).T)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[N, 1 + K]``, the positive first, and labels, all 0; then the keys join the queue."""
        q, k = self._embed(im_q, im_k)
        negatives = self.queue.clone()  # cross-entropy keeps it until its backward pass
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.to(q.dtype)], dim=1) / self.T
        self._enqueue(k)
        return logits, torch.zeros(len(q), dtype=torch.int64, device=q.device)

    def loss(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """``F.cross_entropy(*self(im_q, im_k))`` in O(N dim) memory."""
        q, k = self._embed(im_q, im_k)
        loss = info_nce_loss(q, k, self.queue.T.to(q.dtype), self.T, backend=self.backend)
        self._enqueue(k)
        return loss

    def _embed(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            ema_update_(self.encoder_k, self.encoder_q, self.m, buffers="keep", backend=self.backend)
            if world_size() == 1:
                k = F.normalize(self.encoder_k(im_k), dim=1)
            else:
                shuffled, back = shuffle_rows(im_k)
                k = unshuffle_rows(F.normalize(self.encoder_k(shuffled), dim=1), back)
        return q, k

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        if world_size() > 1:
            keys = gather_rows(keys, world_size())
        enqueue_(self.queue.T, self.queue_ptr, keys, normalize=False, backend=self.backend)
