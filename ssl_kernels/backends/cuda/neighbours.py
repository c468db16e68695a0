"""The nearest row of another set, by the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kernels.backends.cuda import kernels
from ssl_kernels.backends.gpu.device import on_device
from ssl_kernels.backends.gpu.launch import Problem
from ssl_kernels.backends.reference.rows import dtype_of_products


def nearest(x: Tensor, y: Tensor, skip: int | None, normalize: bool) -> Tensor:
    wide = dtype_of_products(x)
    with on_device(x):
        # past the last column: nobody is left out
        step = len(y) if skip is None else skip
        p = Problem(kernels, None, 1.0, step, normalize, [x.to(wide)], [y.to(wide)], precision="highest")
        grid, span = p.grid(p.x, p.y, kernels.tile("value", p.operands, p.padded_width, p.arch))
        products, indices = p.empty(grid[1], p.x.padded), p.empty(grid[1], p.x.padded, dtype=torch.int32)
        index = torch.empty(len(x), dtype=torch.int64, device=x.device)
        kernels.nearest(p, span, products, indices, index)
    return index
