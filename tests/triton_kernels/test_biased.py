"""Log-sum-exp with a bias against the definition."""

from __future__ import annotations

import pytest
import torch
from serving import kernels

from ssl_kernels.backends import reference

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (70, 33), (2, 4500)])
def test_log_sum_exp_with_a_bias(rows, width, dtype):
    logits = torch.randn(rows, width, dtype=F64).mul(20).to(dtype)
    for dim in (0, 1):
        bias = 30 * torch.randn(logits.shape[dim], dtype=F64 if dtype == F64 else F32)
        for given in (bias, None):
            got = kernels.biased_lse(logits, given, 3.0, dim)
            exact = reference.biased_lse(logits.double(), None if given is None else given.double(), 3.0, dim)
            torch.testing.assert_close(got.double(), exact, rtol=4 * torch.finfo(got.dtype).eps, atol=1e-5)
