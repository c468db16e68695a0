"""t-SimCNE's losses (``tsimcne/losses/infonce.py``): both views in one tensor, and a dictionary of results.

Each returns ``loss``, ``ta`` (minus the mean logit of the positives: tempered alignment) and ``ru`` (half the sum of
the two views' mean log-sum-exp: raw uniformity); ``loss = ta + ru``, with all its digits when the two nearly cancel.

``temperature`` is what its authors call so: it divides cosines, and multiplies (squared) distances. Unlike there,
distances come from differences instead of ``torch.cdist``, which loses those of close points to cancellation; float64
stays float64; the modules with a learned temperature run hooks, and hand their ``logtemp`` back as a tensor, so that
nobody waits for the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.t_simcne import negatives_and_positives
from ssl_kernels.ops import check_rows, check_views, self_lse

__all__ = ["CauchyTemp", "CosineTemp", "InfoNCECauchy", "InfoNCECosine", "InfoNCEGaussian", "InfoNCET"]


def _views(features: Tensor) -> list[Tensor]:
    check_rows("features", features)
    if len(features) % 2:
        raise ValueError(f"features: expected an even number of rows, one view below the other, got {len(features)}")
    views = list(features.chunk(2)) if len(features) else [features, features]
    check_views(views, names=("features", "features"))
    return views


def _results(neg: Tensor, pos: Tensor, top: Tensor | float) -> dict[str, Tensor]:
    results = {
        "loss": F.softplus(neg - pos, 1.0, 40.0).mean(),
        "ta": -(pos + top).mean(),
        "ru": (torch.logaddexp(neg.to(pos.dtype), pos) + top).mean(),
    }
    return {name: value.to(neg.dtype) for name, value in results.items()}


class InfoNCECosine(nn.Module):
    """NT-Xent: cosines over ``temperature``.

    Args:
        temperature: divides the cosines.
        backend: as in :func:`ssl_kernels.nt_xent_loss`.
    """

    def __init__(self, temperature: float = 0.5, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.backend = backend

    def forward(
        self, features: Tensor, backbone_features: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Of both views, ``[2N, D]``; the other two are ignored."""
        return self._of(features, None, 1 / self.temperature)

    def _of(self, features: Tensor, scale: Tensor | None, multiplier: float) -> dict[str, Tensor]:
        views = _views(features)
        neg, pos, top = self_lse(views, scale, multiplier, period=len(views[0]), backend=self.backend)
        return _results(neg, pos[0], top)


class InfoNCEGaussian(nn.Module):
    """Logits are ``-(temperature * distance) ** 2``.

    Args:
        temperature: multiplies the distances.
        backend: as in :func:`ssl_kernels.t_simcne_loss`.
    """

    def __init__(self, temperature: float = 1, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.backend = backend

    def forward(
        self, features: Tensor, backbone_features: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Of both views, ``[2N, D]``; the other two are ignored."""
        return self._of(features, None, self.temperature**2, math.inf)

    def _of(self, features: Tensor, scale: Tensor | None, multiplier: float, dof: float) -> dict[str, Tensor]:
        a, b = _views(features)
        neg, pos = negatives_and_positives(a, b, scale, multiplier, dof, self.backend)
        return _results(neg, pos, 0.0)


class InfoNCET(InfoNCEGaussian):
    """Student-t logits, ``-(dof + 1) / 2 * log(1 + 2 * temperature * distance ** 2 / dof)``.

    Args:
        dof: degrees of freedom; None: a tenth of the width, at least 2.
        temperature: multiplies the squared distances.
        backend: as in :func:`ssl_kernels.t_simcne_loss`.
    """

    def __init__(self, dof: float | None = None, temperature: float = 1, *, backend: str | None = None) -> None:
        super().__init__(temperature, backend=backend)
        self.dof = dof

    def forward(
        self, features: Tensor, backbone_features: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Of both views, ``[2N, D]``; the other two are ignored."""
        return self._of(features, None, self.temperature, self._freedom(features))

    def _freedom(self, features: Tensor) -> float:
        return max(2, features.shape[1] // 10) if self.dof is None else self.dof


class InfoNCECauchy(InfoNCET):
    """``log(1 / (1 + 2 * temperature * distance ** 2))``; the paper's kernel at a temperature of 0.5."""

    def __init__(self, temperature: float = 1, *, backend: str | None = None) -> None:
        super().__init__(1, temperature, backend=backend)


class CauchyTemp(InfoNCECauchy):
    """:class:`InfoNCECauchy` whose temperature is learned, by its logarithm, the parameter ``logtemp``."""

    def __init__(self, temperature: float = 1.0, *, backend: str | None = None) -> None:
        super().__init__(temperature, backend=backend)
        self.logtemp = nn.Parameter(torch.tensor(float(temperature)).log())

    def forward(
        self, features: Tensor, backbone_features: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :class:`InfoNCECauchy`, and ``logtemp`` among the results."""
        results = self._of(features, self.logtemp.exp(), 1.0, 1)
        return results | {"logtemp": self.logtemp.detach().clone()}


class CosineTemp(InfoNCECosine):
    """:class:`InfoNCECosine` whose temperature is learned, by its logarithm, the parameter ``logtemp``."""

    def __init__(self, temperature: float = 0.5, *, backend: str | None = None) -> None:
        super().__init__(temperature, backend=backend)
        self.logtemp = nn.Parameter(torch.tensor(float(temperature)).log())

    def forward(
        self, features: Tensor, backbone_features: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :class:`InfoNCECosine`, and ``logtemp`` among the results."""
        return self._of(features, (-self.logtemp).exp(), 1.0) | {"logtemp": self.logtemp.detach().clone()}
