"""Large problems without computing them: the memory they take, and addresses beyond M = 46,341 rows (M^2 > 2^31)."""

from __future__ import annotations

import math

import interpreter
import pytest
import torch

from ssl_kernels.backends.triton_kernels import launch

KERNELS = ("prepare", "sweep", "combine", "weigh", "finish", "sum_scale")
MIB = 2**20


@pytest.fixture
def huge(monkeypatch):
    monkeypatch.setattr(interpreter.SETTINGS, "races", False)
    return monkeypatch


def test_workspace_is_linear_in_the_rows(huge):
    """M = 131,072, D = 128: everything that is allocated, results included, counted as it is asked for."""
    huge.setattr(interpreter.SETTINGS, "only", dict.fromkeys(KERNELS, ()))
    asked = []
    empty = torch.empty

    def counted(*args, **kwargs):
        t = empty(*args, **kwargs)
        asked.append(t.numel() * t.element_size())
        return t

    x = [torch.zeros(65536, 128, dtype=torch.bfloat16)] * 2
    scale = torch.tensor(10.0)
    huge.setattr(torch, "empty", counted)
    neg, pos, top = launch.self_lse(x, scale, 1.0, 65536, True)
    forward_bytes = sum(asked)
    asked.clear()
    launch.self_lse_backward(neg, pos, x, scale, 1.0, 65536, True, neg, top)
    # operand rows (float16) 32 MiB; forward: sums and maxima of 64 groups 64 MiB; backward: float32 sums 64 MiB
    # and the gradient 32 MiB
    assert forward_bytes < 98 * MIB
    assert sum(asked) < 131 * MIB


def test_addresses_of_the_last_rows(huge):
    """46,400 rows: the last programs of every kernel, under the interpreter's overflow and bounds checks."""
    rows, scale = 46_400, torch.tensor(10.0)
    x = torch.randn(rows, 4)
    z = torch.nn.functional.normalize(x.double(), dim=1) * 10**0.5
    spans, last_span = 29, 44_800  # of columns in the backward, and the first column of the last one
    prepared = [*range(24), *range(last_span // 32, -(-rows // 32))]  # the first group, and the last rows
    huge.setattr(interpreter.SETTINGS, "only", {"prepare": prepared})
    problem = launch.Problem([x], scale, 1.0, rows, True)

    group, last = 768, 60  # rows in a group, the last group
    first = last * group
    huge.setattr(interpreter.SETTINGS, "only", {"sweep": [last * (last + 1), last * (last + 1) + last]})
    sums = launch.sum_negatives(problem)
    assert sums.shape == (2, last + 1, problem.padded_rows)
    inner = (z[first:] @ z[first:].T).exp().fill_diagonal_(0)
    torch.testing.assert_close(sums[0, last, first:rows].double(), inner.sum(1), rtol=1e-5, atol=0)
    across = (z[:group] @ z[first:].T).exp()
    torch.testing.assert_close(sums[0, last, :group].double(), across.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(sums[0, 0, first:rows].double(), across.sum(0), rtol=1e-5, atol=0)

    blocks = -(-rows // 64)
    huge.setattr(launch, "PROGRAMS", spans * blocks)
    huge.setattr(interpreter.SETTINGS, "only", {"sweep": [blocks * spans - 1]})
    received, unit = launch.receive(problem, torch.ones(rows), torch.full((rows,), 9.0), torch.zeros(rows))
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
    spans = launch._spans(blocks, blocks)
    assert 1 <= spans <= blocks
    assert spans == 1 or spans * rows <= 8 * 64 * launch.PROGRAMS
    rounds = spans * blocks / launch.PROGRAMS
    assert rounds / math.ceil(rounds) > 0.85 or spans == blocks
