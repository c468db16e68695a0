"""timm's ``ModelEmaV2`` and ``ModelEmaV3`` (``timm.utils``), an update being one pass over all tensors.

``ModelEmaV3`` has the arguments of timm 1.0.31. Where timm's averages stand still, these do not: float16 is rounded
stochastically as bfloat16 is, and without ``stochastic_rounding`` an average of 16 bits is refused; ``ModelEmaV2``
copies integers (timm's truncates their average). Tied weights are averaged once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kernels.ema import ema_update_, rounding_state


def _states(ema: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is in both state_dicts, in order; what has two names there (tied weights), once."""
    pairs = zip(ema.state_dict().values(), model.state_dict().values(), strict=True)
    own = {t.data_ptr(): (t, s) for t, s in pairs}.values()
    return [t for t, _ in own], [s for _, s in own]


class ModelEmaV2(nn.Module):
    """A model's exponential moving average: parameters and buffers, matched by their order.

    Args:
        model: what is copied; the copy, ``module``, is put in evaluation mode.
        decay: what an update keeps of the average, from 0 to 1.
        device: where the average lies; None: with the model.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()
        self.decay = decay
        self.device = device
        self.module.to(device=device)

    def update(self, model: nn.Module) -> None:
        """One step towards ``model``."""
        ema_update_(*_states(self.module, model), self.decay, move_source=True)

    def set(self, model: nn.Module) -> None:
        """The average becomes ``model``."""
        with torch.no_grad():
            for t, s in zip(*_states(self.module, model), strict=True):
                t.copy_(s)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEmaV3(ModelEmaV2):
    """A model's exponential moving average with a warm-up of its decay.

    Args:
        model: what is copied; the copy, ``module``, is put in evaluation mode.
        decay: what an update keeps of the average, from 0 to 1; with the warm-up, at most.
        min_decay: the least, during the warm-up.
        update_after_step: up to this step, and the one after it, the average is the model.
        use_warmup: begin with a decay of ``1 - (1 + step / warmup_gamma) ** -warmup_power``.
        warmup_gamma, warmup_power: its constants.
        device: where the average lies; None: with the model.
        dtype: of the average; None: the model's.
        stochastic_rounding: round averages of 16 bits up or down at random, with the right chances.
        stochastic_rounding_seed: equal seeds round alike, on every process.
        foreach: taken for compatibility; every update is one pass.
        exclude_buffers: copy buffers instead of averaging them.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__(model, decay, device)
        self.module.to(dtype=dtype)
        self.min_decay = min_decay
        self.update_after_step = update_after_step
        self.use_warmup = use_warmup
        self.warmup_gamma = warmup_gamma
        self.warmup_power = warmup_power
        self.foreach = foreach
        self.dtype = dtype
        self.stochastic_rounding = stochastic_rounding
        self.stochastic_rounding_seed = stochastic_rounding_seed
        self.exclude_buffers = exclude_buffers
        where = next((t.device for t in self.module.parameters()), None)
        # not in the state_dict, whose keys users of timm know
        state = rounding_state(stochastic_rounding_seed, where) if stochastic_rounding else None
        self.register_buffer("_rounding", state, persistent=False)

    def get_decay(self, step: int | None = None) -> float:
        """The decay at a step; without one, ``decay``."""
        if step is None:
            return self.decay
        step = max(0, step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        return max(min(1 - (1 + step / self.warmup_gamma) ** -self.warmup_power, self.decay), self.min_decay)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """One step towards ``model``, with the decay of ``step``."""
        decay = self.get_decay(step)
        how: dict[str, Any] = {"rounding": self._rounding, "move_source": True}
        if self.exclude_buffers:
            ema_update_(self.module, model, decay, buffers="copy", **how)
        else:
            ema_update_(*_states(self.module, model), decay, **how)
