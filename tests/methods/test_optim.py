from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.optim import LARS, build_optimizer, parameter_groups


def steps(optimizer_class: type, gradients: list[torch.Tensor], start: torch.Tensor, **options) -> torch.Tensor:
    w = nn.Parameter(start.clone())
    optimizer = optimizer_class([w], **options)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_its_formula(nesterov: bool):
    w, lr, decay, mu, eta = torch.randn(4, 3), 0.3, 0.01, 0.9, 0.002
    gradients = [torch.randn(4, 3) for _ in range(3)]
    options = {"lr": lr, "momentum": mu, "weight_decay": decay, "trust_coefficient": eta, "nesterov": nesterov}
    ours = steps(LARS, gradients, w, **options)
    m = None
    for g in gradients:
        trust = eta * w.norm() / (g.norm() + decay * w.norm() + 1e-8)
        d = trust * (g + decay * w)
        m = d if m is None else mu * m + d
        w = w - lr * (d + mu * m if nesterov else m)
    torch.testing.assert_close(ours, w)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}])
def test_lars_without_weight_decay_is_sgd(options: dict):
    gradients = [torch.randn(4, 3) for _ in range(3)]
    w = torch.randn(4, 3)
    torch.testing.assert_close(
        steps(LARS, gradients, w, lr=0.1, **options), steps(torch.optim.SGD, gradients, w, lr=0.1, **options)
    )


def test_lars_takes_a_plain_step_from_zero_weights():
    moved = steps(LARS, [torch.ones(2, 2)], torch.zeros(2, 2), lr=0.1, weight_decay=0.1)
    torch.testing.assert_close(moved, torch.full((2, 2), -0.1))


def test_lars_returns_the_loss_of_a_closure():
    w = nn.Parameter(torch.ones(2))

    def closure() -> torch.Tensor:
        w.grad = None
        loss = w.square().sum()
        loss.backward()
        return loss

    assert LARS([w], lr=0.1).step(closure).item() == 2
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.8))


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": 1.0, "momentum": -1.0}, {"lr": 1.0, "nesterov": True}, {"lr": float("nan")}]
)
def test_lars_refuses_what_makes_no_sense(wrong: dict):
    with pytest.raises(ValueError, match="expected"):
        LARS([nn.Parameter(torch.ones(1))], **wrong)


def test_biases_and_norms_have_no_weight_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    decayed, free = parameter_groups(model, 0.1)
    assert [w.dim() for w in decayed["params"]] == [4, 2]
    assert [w.dim() for w in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimiser_lowers_a_square(name: str):
    model = nn.Linear(4, 4)
    optimizer = build_optimizer(name, model, lr=0.05, weight_decay=1e-4, momentum=0.9)
    before = model.weight.square().sum().item()
    for _ in range(20):
        optimizer.zero_grad()
        sum(p.square().sum() for p in model.parameters()).backward()
        optimizer.step()
    assert model.weight.square().sum().item() < before


def test_an_unknown_optimiser():
    with pytest.raises(ValueError, match="optimizer: expected adamw, sgd or lars, got 'adam'"):
        build_optimizer("adam", nn.Linear(1, 1), lr=1.0, weight_decay=0.0, momentum=0.0)
