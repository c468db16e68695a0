"""Momentum encoders as lightly's and solo-learn's users call them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_kernels.compat.momentum import MomentumUpdater, initialize_momentum_params, update_momentum


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model, average = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    model(torch.randn(5, 3))
    return model, average


def test_update_momentum_averages_parameters_only():
    model, average = pair()
    before = copy.deepcopy(average)
    update_momentum(model, average, m=0.9)
    for got, old, new in zip(average.parameters(), before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, 0.9 * old + 0.1 * new)
        assert got.requires_grad
    for got, old in zip(average.buffers(), before.buffers(), strict=True):
        assert torch.equal(got, old)


def test_momentum_updater():
    model, average = pair()
    storages = [p.data_ptr() for p in average.parameters()]
    initialize_momentum_params(model, average)
    for p, q in zip(average.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q) and not p.requires_grad
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    updater = MomentumUpdater(0.9, 1.0)
    updater.update(model, average)
    for p, q in zip(average.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.9)
    assert [p.data_ptr() for p in average.parameters()] == storages
    updater.update_tau(50, 100)
    assert updater.cur_tau == pytest.approx(0.95)
    updater.update_tau(100, 100)
    assert updater.cur_tau == 1.0


@pytest.mark.parametrize("taus", [(-0.1, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_momenta_out_of_order(taus):
    with pytest.raises(AssertionError):
        MomentumUpdater(*taus)
