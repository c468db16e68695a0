"""Optimisers: LARS for large batches (You et al. 2017, https://arxiv.org/abs/1708.03888), SGD, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum whose step is scaled layer by layer to the norm of the weights.

    .. math:: g \leftarrow (g + \lambda w) \frac{\eta \lVert w\rVert}{\lVert g\rVert + \lambda\lVert w\rVert+\epsilon}
    .. math:: m \leftarrow \mu m + (1 - d)\, g, \qquad w \leftarrow w - \gamma m

    Groups with ``weight_decay = 0`` (biases, norms) and tensors whose weights or gradient are zero take a plain step.

    Args:
        params: parameters or groups of them.
        lr: gamma.
        momentum, dampening, nesterov: mu and d, as in ``torch.optim.SGD``; the first step has m = g.
        weight_decay: lambda.
        trust_coefficient: eta.
        eps: epsilon.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(f"nesterov: expected momentum > 0 and dampening = 0, got {momentum} and {dampening}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.add_(self._direction(w, group), alpha=-group["lr"])
        return loss

    def _direction(self, w: Tensor, group: dict) -> Tensor:
        g, decay = w.grad, group["weight_decay"]
        if decay != 0:
            w_norm, g_norm = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            trust = group["trust_coefficient"] * w_norm / (g_norm + decay * w_norm + group["eps"])
            # A tensor, not a Python if: no waiting for the GPU
            adapt = (w_norm != 0) & (g_norm != 0)
            g = torch.where(adapt, (g + decay * w) * trust, g)
        if group["momentum"] == 0:
            return g
        state = self.state[w]
        if "momentum_buffer" not in state:
            m = state["momentum_buffer"] = g.clone()
        else:
            m = state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=1 - group["dampening"])
        return g + group["momentum"] * m if group["nesterov"] else m


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels with weight decay, biases and norms (at most one dimension) without."""
    trained = [w for w in model.parameters() if w.requires_grad]
    return [
        {"params": [w for w in trained if w.dim() > 1], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.dim() <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """``adamw``, ``sgd`` or ``lars`` over the parameters of ``model``; ``momentum`` is AdamW's first beta."""
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum)
    raise ValueError(f"optimizer: expected adamw, sgd or lars, got {name!r}")
