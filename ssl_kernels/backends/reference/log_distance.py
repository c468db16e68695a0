"""Distances on the sphere from given rows, as passes over all rows by torch: for every norm and device.

In float64 where the device has it: of two rows that nearly coincide the difference lies beyond float32's digits, and
its inverse is the gradient.
"""

from __future__ import annotations

import math

import torch

from ssl_kernels.backends.reference.rows import gradients, unit


def log_distance(x, index, first, p, eps):
    z, norm = _unit(x)
    distance = torch.linalg.vector_norm(_differences(z, index, first, eps), ord=p, dim=1)
    value = (distance + eps).log().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return value, norm.squeeze(1), distance


def log_distance_backward(dvalue, x, index, norm, distance, first, p, eps):
    z, norm = _unit(x)
    v, d = _differences(z, index, first, eps), distance[:, None]
    if math.isinf(p):
        largest = v.abs() == d
        slope = v.sign() * largest / largest.sum(1, keepdim=True)
    else:
        slope = v.sign() * torch.where(v == 0, 0.0, (v.abs() / d) ** (p - 1))
    dv = torch.where(d == 0, 0.0, dvalue[:, None].to(d.dtype) / (d + eps) * slope)
    # as the gradient of a table look-up is summed up: in one order, whatever the number of threads
    dz = -torch.ops.aten.embedding_dense_backward(dv, index, x.shape[0], -1, False)
    dz[first : first + index.shape[0]] += dv
    return gradients(dz, z, norm, True, [x])[0]


def _unit(x):
    return unit([x if x.device.type == "mps" else x.double()], True)


def _differences(z, index, first, eps):
    return z[first : first + index.shape[0]] - z[index] + eps
