"""Large problems without computing them: the memory they take, and addresses beyond M = 46,341 rows (M^2 > 2^31)."""

from __future__ import annotations

import math

import interpreter
import pytest
import torch

from ssl_kernels.backends import triton
from ssl_kernels.backends.gpu import launch, passes
from ssl_kernels.backends.triton_kernels import kernels

KERNELS = ("prepare", "sweep", "combine", "weigh", "finish", "sum_scale")
MIB = 2**20


@pytest.fixture
def huge(monkeypatch):
    monkeypatch.setattr(interpreter.SETTINGS, "races", False)
    return monkeypatch


@pytest.fixture
def asked(huge):
    """Every byte that is allocated, results included, counted as it is asked for; no kernel runs."""
    huge.setattr(interpreter.SETTINGS, "only", dict.fromkeys(KERNELS, ()))
    sizes = []
    empty = torch.empty

    def counted(*args, **kwargs):
        t = empty(*args, **kwargs)
        sizes.append(t.numel() * t.element_size())
        return t

    huge.setattr(torch, "empty", counted)
    return sizes


def test_workspace_is_linear_in_the_rows(asked):
    """M = 131,072, D = 128."""
    x = [torch.zeros(65536, 128, dtype=torch.bfloat16)] * 2
    scale = torch.tensor(10.0)
    neg, pos, top = triton.self_lse(x, scale, 1.0, 65536, True)
    # operand rows (float16) 32 MiB; sums and maxima of 64 groups 64 MiB
    assert sum(asked) < 98 * MIB
    asked.clear()
    triton.self_lse_backward(neg, pos, x, scale, 1.0, 65536, True, neg, top)
    # operand rows, float32 sums 64 MiB and the gradient 32 MiB
    assert sum(asked) < 131 * MIB


def test_workspace_of_two_sets_is_that_of_their_rows(asked):
    """M = K = 65,536, D = 128: as the same number of rows against themselves."""
    x, y = torch.zeros(2, 65536, 128, dtype=torch.bfloat16)
    args = x, [y], torch.tensor(10.0), 1.0, 0, True
    neg, pos, top, neg_y, pos_y, top_y = triton.cross_lse(*args, True)
    assert sum(asked) < 98 * MIB
    asked.clear()
    triton.cross_lse_backward(neg, pos, neg_y, pos_y, *args, neg, top, neg_y, top_y, True, True)
    assert sum(asked) < 131 * MIB


def test_workspace_of_few_rows_against_a_queue(asked):
    """M = 256, K = 65,536, D = 128: the queue as operand rows 16 MiB, the sums of 66 spans 8.3 MiB."""
    x, y = torch.zeros(256, 128, dtype=torch.bfloat16), torch.zeros(65536, 128, dtype=torch.bfloat16)
    triton.attend_lse(x, [y], torch.tensor(5.0), 1.0, None, True)
    assert sum(asked) < 25 * MIB
    asked.clear()
    triton.cross_lse(x, [y], torch.tensor(5.0), 1.0, None, True, False)
    assert sum(asked) < 18 * MIB


def test_addresses_of_the_last_rows(huge):
    """46,400 rows: the last programs of every kernel, under the interpreter's overflow and bounds checks."""
    rows, scale = 46_400, torch.tensor(10.0)
    x = torch.randn(rows, 4)
    z = torch.nn.functional.normalize(x.double(), dim=1) * 10**0.5
    spans, last_span = 29, 44_800  # of columns in the backward, and the first column of the last one
    prepared = [*range(24), *range(last_span // 32, -(-rows // 32))]  # the first group, and the last rows
    huge.setattr(interpreter.SETTINGS, "only", {"prepare": prepared})
    problem = launch.Problem(kernels, scale, 1.0, rows, True, [x])

    group, last = 768, 60  # rows in a group, the last group
    first = last * group
    huge.setattr(interpreter.SETTINGS, "only", {"sweep": [last * (last + 1), last * (last + 1) + last]})
    sums, _ = passes.sum_negatives(problem)
    assert sums.shape == (2, last + 1, problem.x.padded)
    inner = (z[first:] @ z[first:].T).exp().fill_diagonal_(0)
    torch.testing.assert_close(sums[0, last, first:rows].double(), inner.sum(1), rtol=1e-5, atol=0)
    between = (z[:group] @ z[first:].T).exp()
    torch.testing.assert_close(sums[0, last, :group].double(), between.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(sums[0, 0, first:rows].double(), between.sum(0), rtol=1e-5, atol=0)

    blocks = -(-rows // 64)
    huge.setattr(launch, "PROGRAMS", spans * blocks)
    huge.setattr(interpreter.SETTINGS, "only", {"sweep": [blocks * spans - 1]})
    weights, _, unit = passes.weigh(problem, (torch.full((rows,), 9.0), torch.zeros(rows), torch.ones(rows)))
    received = passes.receive(problem, problem.x, problem.y, rows, weights, weights)
    assert len(received) == spans
    own = rows - (blocks - 1) * 64  # rows of the last block
    e = (z[-own:] @ z[last_span:].T).exp()
    e[:, -own:].fill_diagonal_(0)
    want = 2 * (e @ z[last_span:] / 10**0.5) * math.exp(-9)
    got = received[-1, rows - own : rows, :4].double() * unit / 1024
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("rows", [64, 1_000, 8_192, 20_000, 40_000, 131_072])
def test_columns_are_split_only_to_fill_the_chip(rows):
    blocks = -(-rows // 64)
    spans = launch.spans(blocks, blocks, launch.PROGRAMS)
    assert 1 <= spans <= blocks
    assert spans == 1 or spans * rows <= 8 * 64 * launch.PROGRAMS
    rounds = spans * blocks / launch.PROGRAMS
    assert rounds / math.ceil(rounds) > 0.85 or spans == blocks
