"""MoCo's builder: names, shapes, the order of things."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_kernels.compat.moco import MoCo


class Encoder(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.norm, self.fc = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.body(x)).relu())


@pytest.mark.parametrize("mlp", [False, True])
def test_a_step_is_the_papers(mlp):
    torch.manual_seed(0)
    moco = MoCo(Encoder, dim=8, K=20, m=0.75, T=0.2, mlp=mlp)
    assert not any(p.requires_grad for p in moco.encoder_k.parameters())
    with torch.no_grad():
        for p in moco.encoder_q.parameters():
            p.add_(torch.randn_like(p))
    before = copy.deepcopy(moco)
    images = torch.randn(2, 8, 6)
    logits, labels = moco(*images)

    for k, old, q in zip(*(m.parameters() for m in (moco.encoder_k, before.encoder_k, moco.encoder_q)), strict=True):
        torch.testing.assert_close(k, 0.75 * old + 0.25 * q)
    assert moco.encoder_k.norm.num_batches_tracked == 1  # buffers are the key encoder's own
    q = F.normalize(before.encoder_q(images[0]), dim=1)
    k = F.normalize(copy.deepcopy(moco.encoder_k)(images[1]), dim=1).detach()
    expected = torch.cat([(q * k).sum(1, keepdim=True), q @ before.queue], dim=1) / 0.2
    torch.testing.assert_close(logits, expected)
    assert labels.tolist() == [0] * 8
    torch.testing.assert_close(moco.queue[:, :8], k.T)
    assert torch.equal(moco.queue[:, 8:], before.queue[:, 8:]) and moco.queue_ptr.tolist() == [8]


def test_the_loss_is_that_of_the_logits_and_batches_go_round_the_end():
    torch.manual_seed(0)
    first = MoCo(Encoder, dim=8, K=20, T=0.2)
    second = copy.deepcopy(first)
    for _ in range(5):
        images = torch.randn(2, 7, 6)
        fused, eager = first.loss(*images), F.cross_entropy(*second(*images))
        torch.testing.assert_close(fused, eager)
        grads = (torch.autograd.grad(v, list(m.encoder_q.parameters())) for v, m in ((fused, first), (eager, second)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(first.queue, second.queue)
    assert first.queue_ptr.tolist() == [15]


def test_old_checkpoints_load():
    moco = MoCo(Encoder, dim=8, K=20)
    state = {name: value.contiguous() for name, value in moco.state_dict().items()}
    assert state["queue"].shape == (8, 20) and state["queue_ptr"].shape == (1,)
    other = MoCo(Encoder, dim=8, K=20)
    other.load_state_dict(state)
    assert torch.equal(other.queue, moco.queue)
    other.loss(torch.randn(4, 6), torch.randn(4, 6)).backward()
