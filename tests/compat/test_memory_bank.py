"""lightly's memory bank: what is dropped, what is returned, what is kept."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat.memory_bank import MemoryBankModule, NNMemoryBankModule


@pytest.mark.parametrize("feature_dim_first", [True, False])
def test_the_tail_of_the_batch_that_reaches_the_end_is_dropped(feature_dim_first):
    module = MemoryBankModule((10, 2), feature_dim_first=feature_dim_first)
    torch.testing.assert_close(module.bank.norm(dim=1), torch.ones(10))
    for k, pointer in ((1, 4), (2, 8), (3, 0), (4, 4)):
        before = module.bank.clone()
        batch = torch.full((4, 2), float(k))
        output, bank = module(batch, update=True)
        assert output is batch
        assert torch.equal(bank, before.T if feature_dim_first else before)
        assert module.bank_ptr.tolist() == [pointer]
    assert module.bank[:, 0].tolist() == [4] * 4 + [2] * 4 + [3] * 2  # rows as they came, not normalised


def test_a_batch_longer_than_the_bank():
    module = MemoryBankModule((3, 2))
    module(torch.arange(10.0)[:, None].expand(-1, 2), update=True)
    assert module.bank[:, 0].tolist() == [0, 1, 2] and module.bank_ptr.tolist() == [0]


def test_nothing_changes_without_update():
    module = MemoryBankModule((5, 2))
    _, first = module(torch.ones(2, 2))
    _, second = module(torch.ones(2, 2))
    assert torch.equal(first, second) and module.bank_ptr.tolist() == [0]
    first.zero_()
    assert not (module.bank == 0).any()


def test_a_size_without_a_width_is_warned_of_and_found_out():
    with pytest.warns(UserWarning, match="Memory bank size 'size=7' does not specify feature dimension"):
        module = MemoryBankModule(7)
    module(torch.ones(2, 3), update=True)
    assert module.bank.shape == (7, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemoryBankModule((7, 3))
        assert MemoryBankModule(0)(torch.ones(2, 3), update=True)[1] is None


@pytest.mark.parametrize("size", [-1, (-1, 3), (4, -2)])
def test_negative_sizes(size):
    with pytest.raises(ValueError, match=r"Illegal memory bank size .*, all entries must be non-negative\."):
        MemoryBankModule(size)


def test_checkpoints_hold_the_bank_and_those_without_load():
    module, other = MemoryBankModule((5, 2)), MemoryBankModule((5, 2))
    module(torch.ones(3, 2), update=True)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.bank, module.bank) and other.bank_ptr.tolist() == [3]
    other.load_state_dict({})
    assert torch.equal(other.bank, module.bank)


def test_nearest_neighbours():
    module = NNMemoryBankModule((40, 8))
    with torch.no_grad():
        module.bank.mul_(torch.rand(40, 1) + 0.5)
    output = torch.randn(6, 8)
    before = module.bank.clone()
    found = module(output, update=True)
    nearest = (F.normalize(output, dim=1) @ F.normalize(before, dim=1).T).argmax(1)
    assert torch.equal(found, before[nearest])
    assert torch.equal(module.bank[:6], output)
    with pytest.raises(ValueError, match="size: expected at least one row, got 0"):
        NNMemoryBankModule(0)
