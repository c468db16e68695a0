r"""t-SimCNE: contrastive learning of embeddings to look at (Böhm, Berens & Kobak 2022, https://arxiv.org/abs/2210.09879).

NT-Xent with another similarity. Points are not put on the sphere, a plane will do, and they attract and repel by their
distance. With ``M = 2N`` rows (two views of ``N`` samples) and squared distances :math:`d^2_{ij}`,

.. math:: \mathcal L = -\frac1M \sum_i \log \frac{\kappa(d^2_{i\,p(i)})}{\sum_{j \ne i} \kappa(d^2_{ij})}, \qquad
          \kappa(d^2) = \Bigl(1 + \frac{d^2}{\nu\tau}\Bigr)^{-(\nu + 1) / 2},

a Student-t kernel with :math:`\nu` degrees of freedom and :math:`\tau` for its squared width. One degree of freedom is
the paper's Cauchy kernel :math:`1 / (1 + d^2)`; infinitely many are the Gaussian :math:`e^{-d^2 / 2\tau}`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.losses.temperature import as_factor, as_scale, check_temperature
from ssl_kernels.ops import accumulate_dtype, check_views, mean_log_share, student_lse

__all__ = ["TSimCNELoss", "t_simcne_loss", "t_simcne_reference"]


def t_simcne_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 1.0, *, dof: float = 1.0, backend: str | None = None
) -> Tensor:
    r"""Contrastive loss by distances between two views (t-SimCNE), O(N D) memory.

    Distances are summed up from differences, never by way of a matrix product, so that points close together keep
    theirs; with one degree of freedom no exponential is computed.

    Args:
        z1, z2: the two views, ``[N, D]``, float32/64, bfloat16 or float16, of one dtype and device; taken as they are.
            ``D = 2`` is what it is for; any width works.
        temperature: tau, the squared width of the kernel, above 0: a float, or a one-element tensor (then it gets a
            gradient). A tensor on a GPU is not read back to be checked: a negative one there gives NaN. The authors'
            code has ``1 / (2 tau)`` by this name (``ssl_kernels.compat.tsimcne`` takes that).
        dof: degrees of freedom, above 0: 1 for the Cauchy kernel, ``math.inf`` for a Gaussian.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; default: the fastest available for the device.

    Returns:
        The mean over the 2N rows, a float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes differ, not 2-d, N < 1, dtypes or devices differ, a temperature or ``dof`` that is not above
            0, unknown or unavailable backend.
        TypeError: not floating-point tensors.

    Böhm, Berens & Kobak 2022, https://arxiv.org/abs/2210.09879. Reference: :func:`t_simcne_reference`.
    Differentiable once; a second derivative raises (the reference has all of them).
    """
    check_views([z1, z2])
    scale, multiplier = _as_scale(temperature, z1)
    neg, pos = negatives_and_positives(z1, z2, scale, multiplier, dof, backend)
    return mean_log_share(neg, pos).to(neg.dtype)


def negatives_and_positives(
    z1: Tensor, z2: Tensor, scale: Tensor | None, multiplier: float, dof: float, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Logits of every row: log-sum-exp over its negatives ``[2, N]``, and its positive's ``[N]``, in float64."""
    n = len(z1)
    # both parts of a gradient are summed up before they are rounded to 16 bits: they nearly cancel
    wide = torch.promote_types(accumulate_dtype(z1.dtype), accumulate_dtype(z2.dtype))
    z1, z2 = z1.to(wide), z2.to(wide)
    neg = student_lse([z1, z2], scale, multiplier, dof=dof, period=n, backend=backend)
    d2 = (z1 - z2).square().sum(1)
    return neg.view(2, n), _log_kernel(d2.double() * as_factor(scale, multiplier, z1), dof)


def _log_kernel(d2: Tensor, dof: float) -> Tensor:
    """Of squared distances over twice the squared width."""
    return -d2 if dof == math.inf else -(dof + 1) / 2 * torch.log1p(2 / dof * d2)


def _as_scale(temperature: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    _check_temperature(temperature)
    scale, multiplier = as_scale(temperature, like)
    return scale if scale is None else scale.double(), 0.5 * multiplier  # its gradient's two parts nearly cancel too


def _check_temperature(temperature: float | Tensor) -> None:
    check_temperature(temperature)
    if isinstance(temperature, Tensor) and (torch.compiler.is_compiling() or temperature.device.type != "cpu"):
        return
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {float(temperature)}")


def t_simcne_reference(z1: Tensor, z2: Tensor, temperature: float | Tensor = 1.0, *, dof: float = 1.0) -> Tensor:
    """The same as :func:`t_simcne_loss`, written as the paper has it, with all distances and plain autograd."""
    check_views([z1, z2])
    _check_temperature(temperature)
    z = torch.cat([z1, z2])
    rows, n = len(z), len(z1)
    d2 = (z[:, None] - z[None, :]).square().sum(2)
    logits = _log_kernel(d2 / (2 * temperature), dof)
    logits = logits.masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), float("-inf"))
    return F.cross_entropy(logits, (torch.arange(rows, device=z.device) + n) % rows)


class TSimCNELoss(nn.Module):
    """:func:`t_simcne_loss` as a module: ``TSimCNELoss()(z1, z2)``.

    Args:
        temperature: tau, a float, or a one-element tensor or ``nn.Parameter`` to learn it.
        dof, backend: as in :func:`t_simcne_loss`.
    """

    def __init__(self, temperature: float | Tensor = 1.0, dof: float = 1.0, *, backend: str | None = None) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.dof = dof
        self.backend = backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return t_simcne_loss(z1, z2, self.temperature, dof=self.dof, backend=self.backend)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, dof={self.dof}"


def _inputs(n: int, d: int, dof: float = 1.0, **tensor: Any) -> dict[str, Any]:
    z1, z2 = torch.randn(n, d, **tensor), torch.randn(n, d, **tensor)
    return {"z1": z1 / math.sqrt(d), "z2": z2 / math.sqrt(d), "temperature": 1.0, "dof": dof}


def _trained(n: int, d: int, dof: float = 1.0, **tensor: Any) -> dict[str, Any]:
    z, noise = torch.randn(n, d, **tensor) / math.sqrt(d), torch.randn(n, d, **tensor) / math.sqrt(d)
    return {"z1": z, "z2": z + 0.1 * noise, "temperature": 1.0, "dof": dof}


def _spec(name: str, dof: float, **rest: Any) -> LossSpec:
    return LossSpec(
        name=name,
        fused=t_simcne_loss,
        reference=t_simcne_reference,
        module=partial(TSimCNELoss, dof=dof),
        inputs=partial(_inputs, dof=dof),
        trained=partial(_trained, dof=dof),
        features=("z1", "z2"),
        parameters=("temperature",),
        temperatures=(0.05, 0.25, 1.0, 2.0, 10.0),  # the width of the kernel, where the points' spread is 1
        largest=2.5e6,  # the reference stores (2n)^2 differences of d entries, 80 MB here in float64
        **rest,
    )


SPEC = _spec("t_simcne", 1.0, variants=(_spec("t_simcne_student", 4.0), _spec("t_simcne_gaussian", math.inf)))
