"""Each method against its paper's formula, written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.__main__ import METHODS
from methods.batch import Batch
from methods.train import Run
from ssl_kernels import cosine_momentum, sup_con_reference


def made(name: str, settings_of: Callable, **changes: object) -> Run:
    return Run(METHODS[name], METHODS[name].Config(**settings_of(name, **changes)))


def unit(count: int, n: int = 8, d: int = 16) -> list[Tensor]:
    return [F.normalize(torch.randn(n, d), dim=1) for _ in range(count)]


def contrast(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1) / tau
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


# ---------------------------------------------------------------------------------------------------------------- MoCo
def test_moco_asks_with_one_view_and_answers_with_the_other(settings_of: Callable):
    method = made("moco", settings_of, temperature=0.2).method
    (queue,) = method.queues
    old = queue.rows.clone()
    q, k = unit(2)
    torch.testing.assert_close(method.loss([q, k], Batch()), contrast(q, k, old, 0.2))
    torch.testing.assert_close(queue.rows[:8], k)
    assert torch.equal(queue.rows[8:], old[8:]) and queue.pointer == 8


def test_symmetric_moco_has_a_queue_for_each_view(settings_of: Callable):
    method = made("moco", settings_of, temperature=0.2, symmetric=True).method
    old = [queue.rows.clone() for queue in method.queues]
    q1, q2, k1, k2 = unit(4)
    expected = (contrast(q1, k2, old[1], 0.2) + contrast(q2, k1, old[0], 0.2)) / 2
    torch.testing.assert_close(method.loss([q1, q2, k1, k2], Batch()), expected)
    for queue, k in zip(method.queues, (k1, k2), strict=True):
        torch.testing.assert_close(queue.rows[:8], k)


def test_the_heads_of_moco_v1_and_v2(settings_of: Callable):
    v1, v2 = (made("moco", settings_of, mlp_head=flag).method.head for flag in (False, True))
    assert [type(layer) for layer in v1] == [nn.Linear]
    assert [type(layer) for layer in v2] == [nn.Linear, nn.ReLU, nn.Linear]


def test_shuffling_in_one_process_gives_keys_other_companions_but_their_own_place(settings_of: Callable):
    """Groups of a batch have statistics of their own: with the same encoder, q and k differ only by who is beside."""
    run = made("moco", settings_of, bn_groups=4)
    x = torch.rand(32, 3, 12, 12)
    q, k = run.method.eval()(Batch([x, x]))
    torch.testing.assert_close(q, k)
    q, k = run.method.train()(Batch([x, x]))
    assert not torch.allclose(q, k, atol=1e-4)
    assert (F.cosine_similarity(q[:, None], k[None], dim=2).argmax(1) == torch.arange(32)).float().mean() > 0.8


def test_mocov3_is_its_pseudo_code(settings_of: Callable):
    tau = 0.3
    method = made("mocov3", settings_of, temperature=tau).method
    q1, q2, k1, k2 = unit(4)

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        return 2 * tau * F.cross_entropy(q @ k.T / tau, torch.arange(len(q)))

    torch.testing.assert_close(method.loss([q1, q2, k1, k2], Batch()), ctr(q1, k2) + ctr(q2, k1))


# ------------------------------------------------------------------------------------------------ without negatives
def test_byol_adds_both_directions(settings_of: Callable):
    method = made("byol", settings_of).method
    p1, p2, z1, z2 = unit(4)
    expected = (p1 - z2).square().sum(1).mean() + (p2 - z1).square().sum(1).mean()
    torch.testing.assert_close(method.loss([p1, p2, z1, z2], Batch()), expected)


def test_simsiam_takes_their_mean(settings_of: Callable):
    method = made("simsiam", settings_of).method
    p1, p2, z1, z2 = unit(4)
    expected = -((p1 * z2).sum(1).mean() + (p2 * z1).sum(1).mean()) / 2
    torch.testing.assert_close(method.loss([p1, p2, z1, z2], Batch()), expected)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_where_the_gradient_stops(name: str, stop_gradient: bool, settings_of: Callable):
    method = made(name, settings_of, stop_gradient=stop_gradient).method
    embeddings = [z.requires_grad_() for z in unit(4)]
    method.loss(embeddings, Batch()).backward()
    assert [z.grad is not None for z in embeddings] == [True, True] + 2 * [not stop_gradient]


# ------------------------------------------------------------------------------------------------------------ averages
@pytest.mark.parametrize(("name", "average"), [("byol", "target"), ("mocov3", "key_encoder"), ("moco", "key_encoder")])
def test_the_average_follows_after_every_step(name: str, average: str, settings_of: Callable):
    run = made(name, settings_of, ema_momentum=0.9, epochs=3)
    follower = getattr(run.method, average).module
    for step, rows in enumerate(run._order(0)):
        before = [p.clone() for p in follower.parameters()]
        run._step(step, rows)
        m = 0.9 if name == "moco" else cosine_momentum(step, run.total, 0.9)
        leader = [*run.method.encoder.parameters(), *list(run.method.children())[1].parameters()]
        for old, new, p in zip(before, follower.parameters(), leader, strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * p)


# -------------------------------------------------------------------------------------------------------------- labels
def test_supcon_is_its_formula(settings_of: Callable):
    method = made("supcon", settings_of, temperature=0.1).method
    labels, z = torch.arange(8) % 3, unit(2)
    torch.testing.assert_close(method.loss(z, Batch(labels=labels)), sup_con_reference(z, labels, 0.1))
