"""timm's averages: the arithmetic and the order of things, as timm 1.0.31 documents them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_kernels.compat.timm import ModelEmaV2, ModelEmaV3


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    net.register_buffer("cache", torch.zeros(3), persistent=False)
    return net


def train(model: nn.Module) -> None:
    model(torch.randn(8, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        model.cache.add_(1)


def expect(average: dict, model: nn.Module, decay: float, copied: tuple[str, ...] = ()) -> dict:
    """An update entry by entry."""
    return {
        name: decay * average[name] + (1 - decay) * value
        if value.is_floating_point() and name not in copied
        else value.clone()
        for name, value in model.state_dict().items()
    }


SETTINGS = [
    ({}, [0, 0.9999, 0.9999, 0.9999]),
    ({"decay": 0.5, "update_after_step": 2}, [0, 0, 0, 0.5]),
    ({"decay": 0.6, "use_warmup": True}, [0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 0.6]),
    ({"use_warmup": True, "warmup_gamma": 2, "warmup_power": 1, "min_decay": 0.4}, [0, 0.4, 0.5, 0.6]),
]


@pytest.mark.parametrize("exclude_buffers", [False, True])
@pytest.mark.parametrize(("arguments", "decays"), SETTINGS)
def test_v3(arguments, decays, exclude_buffers):
    model = network()
    ema = ModelEmaV3(model, **arguments, exclude_buffers=exclude_buffers)
    assert [name.removeprefix("module.") for name in ema.state_dict()] == list(model.state_dict())
    buffers = tuple(name for name, _ in model.named_buffers()) if exclude_buffers else ()
    for step, decay in enumerate(decays, 1):
        train(model)
        before = {name: value.clone() for name, value in ema.module.state_dict().items()}
        assert ema.get_decay(step) == pytest.approx(decay)
        ema.update(model, step=step)
        for name, value in expect(before, model, decay, buffers).items():
            torch.testing.assert_close(ema.module.state_dict()[name], value)
    assert ema.get_decay() == ema.decay


def test_v2_and_set():
    model = network()
    ema = ModelEmaV2(model, decay=0.75)
    before = copy.deepcopy(ema.module.state_dict())
    train(model)
    ema.update(model)
    for name, value in expect(before, model, 0.75).items():
        torch.testing.assert_close(ema.module.state_dict()[name], value)
    ema.set(model)
    for a, b in zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_copy_is_in_evaluation_mode_and_called():
    model = network()
    ema = ModelEmaV3(model)
    assert model.training and not ema.module.training
    x = torch.randn(3, 4)
    assert torch.equal(ema(x), model.eval()(x))


def test_dtype_and_16_bits():
    model = network().bfloat16()
    assert ModelEmaV3(model, dtype=torch.float32).module[0].weight.dtype == torch.float32
    first, second = ModelEmaV3(model, 0.999), ModelEmaV3(model, 0.999)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(p.abs() + 0.1)
    for ema in (first, second):
        for _ in range(30):
            ema.update(other)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name  # equal seeds
    assert not torch.equal(first.module[0].weight, model[0].weight)
    with pytest.raises(ValueError, match="stands still"):
        ModelEmaV3(model, stochastic_rounding=False).update(other)


def test_tied_weights():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    ema = ModelEmaV3(model, 0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update(model)
    torch.testing.assert_close(ema.module[0].weight.detach(), start + 0.5)
