"""In which dtype products of rows are compared, where the largest is looked for."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this width in float64: unit rows in few dimensions lie close together, their products differ in digits that
# float32 does not have.
IN_DOUBLE = 16


def dtype_of_products(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 or x.shape[1] <= IN_DOUBLE else torch.float32
