"""The interpreter finds the faults that it is here to find, and lets sound kernels pass."""

from __future__ import annotations

import faults
import interpreter
import pytest
import torch
from triton.runtime.errors import InterpreterError


def _raises(kernel, cause: str, grid: int = 4, n: int = 100) -> None:
    x, out = torch.zeros(n), torch.zeros(n)
    with pytest.raises(InterpreterError, match=cause):
        kernel[(grid,)](x, out, n, BLOCK=32)


@pytest.mark.parametrize(
    ("kernel", "cause"),
    [
        (faults.reads_past_the_end, "OutOfBounds"),
        (faults.writes_past_the_end, "OutOfBounds"),
        (faults.writes_where_others_write, "Race"),
        (faults.reads_what_others_write, "Race"),
        (faults.stores_beside_atomics, "Race"),
        (faults.writes_one_address_twice, "two lanes"),
        (faults.overflows, "overflow"),
    ],
    ids=lambda p: getattr(p, "__name__", None),
)
def test_fault_is_found(kernel, cause):
    _raises(kernel, cause)


def test_sound_kernel_passes_in_any_order(monkeypatch):
    x = torch.randn(100)
    for seed in (None, 0, 1):
        monkeypatch.setattr(interpreter.SETTINGS, "seed", seed)
        out = torch.zeros(100)
        faults.copies[(4,)](x, out, 100, BLOCK=32)
        assert torch.equal(out, x)


def test_chosen_programs_run_alone(monkeypatch):
    monkeypatch.setattr(interpreter.SETTINGS, "only", {"copies": [2]})
    x, out = torch.ones(128), torch.zeros(128)
    faults.copies[(4,)](x, out, 128, BLOCK=32)
    assert out.reshape(4, 32).sum(1).tolist() == [0, 0, 32, 0]


def test_bf16_products_and_sums_are_those_of_bf16():
    a, b = torch.randn(2, 32, 32).to(torch.bfloat16)
    out = torch.empty(32, 32)
    faults.multiplies[(1,)](a, b, out, PRECISION="ieee", BLOCK=32)
    torch.testing.assert_close(out, a.float() @ b.float())
    x = torch.randn(32).to(torch.bfloat16)
    out = torch.empty_like(x)
    faults.adds[(1,)](x, out, 32, BLOCK=32)
    assert torch.equal(out, x + x)


def test_float32_rounds_to_bf16_to_nearest_even():
    x = torch.cat([torch.randn(96), torch.tensor([float("nan"), float("inf"), 1.99999, 1 + 2**-8])])
    out = torch.empty(100, dtype=torch.bfloat16)
    faults.copies[(4,)](x, out, 100, BLOCK=32)
    torch.testing.assert_close(out, x.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("precision", "low", "high"), [("ieee", 0, 6e-6), ("tf32x3", 0, 2e-5), ("tf32", 5e-4, 1e-1)])
def test_tf32_drops_the_bits_it_drops(precision, low, high):
    a, b = torch.randn(2, 32, 32)
    out = torch.empty(32, 32)
    faults.multiplies[(1,)](a, b, out, PRECISION=precision, BLOCK=32)
    error = (out.double() - a.double() @ b.double()).abs().max()
    assert low <= error <= high
