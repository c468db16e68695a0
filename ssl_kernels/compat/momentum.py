"""Momentum encoders as lightly (``update_momentum``) and solo-learn (``MomentumUpdater``) have them, in one pass.

Only parameters are averaged, as there: the buffers of a momentum encoder are its own. No storage is replaced.
"""

from __future__ import annotations

import torch
from torch import nn

from ssl_kernels.ema import cosine_momentum, ema_update_


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """lightly's: ``model_ema = m * model_ema + (1 - m) * model``, parameters only."""
    ema_update_(model_ema, model, m, buffers="keep")


@torch.no_grad()
def initialize_momentum_params(online_net: nn.Module, momentum_net: nn.Module) -> None:
    """solo-learn's: the momentum network's parameters become the online network's, and ask for no gradient."""
    ema_update_(momentum_net, online_net, 0.0, buffers="keep")
    momentum_net.requires_grad_(False)


class MomentumUpdater:
    """solo-learn's: an average whose momentum goes from ``base_tau`` to ``final_tau`` along a cosine.

    Args:
        base_tau, final_tau: ``0 <= base_tau <= final_tau <= 1``.

    Attributes:
        cur_tau: the momentum of the next update.

    Raises:
        AssertionError: other momenta.
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0) -> None:
        assert 0 <= base_tau <= 1
        assert 0 <= final_tau <= 1 and base_tau <= final_tau
        self.base_tau = base_tau
        self.cur_tau = base_tau
        self.final_tau = final_tau

    def update(self, online_net: nn.Module, momentum_net: nn.Module) -> None:
        """One step of ``momentum_net`` towards ``online_net``, parameters only."""
        ema_update_(momentum_net, online_net, self.cur_tau, buffers="keep")

    def update_tau(self, cur_step: int, max_steps: int) -> None:
        """The momentum at step ``cur_step`` of ``max_steps``."""
        self.cur_tau = cosine_momentum(cur_step, max_steps, self.base_tau, self.final_tau)
