"""Rows on the sphere and back: what every definition shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-12  # as torch.nn.functional.normalize

# Up to this width products of rows are compared in float64: unit rows in few dimensions lie close together, their
# products differ in digits that float32 does not have.
IN_DOUBLE = 16


def unit(x: Sequence[Tensor], normalize: bool) -> tuple[Tensor, Tensor]:
    """The rows of all ``x`` one below the other, in float32 at least, over their norms; and the norms."""
    z = torch.cat(list(x))
    z = z.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
    n = torch.linalg.vector_norm(z, dim=1, keepdim=True) if normalize else torch.ones_like(z[:, :1])
    return z / n.clamp_min(EPS), n


def dtype_of_products(x: Tensor) -> torch.dtype:
    """In which products of rows are compared, where the largest is looked for. There is no float64 on mps."""
    wide = x.dtype == torch.float64 or (x.shape[1] <= IN_DOUBLE and x.device.type != "mps")
    return torch.float64 if wide else torch.float32


def as_factor(scale: Tensor | None, multiplier: float, like: Tensor) -> Tensor:
    """``multiplier * scale`` as a 0-d tensor of ``like``'s dtype."""
    factor = torch.as_tensor(multiplier, dtype=like.dtype, device=like.device)
    return factor if scale is None else factor * scale.to(like.dtype).reshape(())


def gradients(dz: Tensor, z: Tensor, n: Tensor, normalize: bool, x: Sequence[Tensor]) -> list[Tensor]:
    """From the gradient of the rows on the sphere to that of every ``x``, in its dtype."""
    if normalize:
        through = dz - (dz * z).sum(1, keepdim=True) * z
        huge = dz / EPS  # of a row of zeros; finite in float32, and kept so in what is narrower
        if x[0].dtype in (torch.float16, torch.bfloat16):
            top = torch.finfo(x[0].dtype).max
            huge = huge.clamp(-top, top)
        dz = torch.where(n > EPS, through / n.clamp_min(EPS), huge)
    return [part.clone() for part in dz.to(x[0].dtype).split([len(t) for t in x])]
