from __future__ import annotations

import pytest

from methods.schedule import cosine, warmup_cosine
from methods.seeds import seed_of


def test_warm_up_is_linear_and_starts_above_zero():
    assert [warmup_cosine(s, 100, 4) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_passes_the_half_in_the_middle_and_ends_above_zero():
    assert warmup_cosine(55, 100, 10) == pytest.approx(0.5)
    assert 0 < warmup_cosine(99, 100, 10) < 0.001
    values = [warmup_cosine(s, 100, 10) for s in range(10, 100)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (3, 3), (3, 10)])
def test_short_runs_have_a_rate_too(total: int, warmup: int):
    assert all(0 < warmup_cosine(s, total, warmup) <= 1 for s in range(total))


def test_seeds_of_neighbours_have_nothing_in_common():
    seeds = [seed_of(seed, name, k) for seed in range(5) for name in ("order", "step") for k in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**32 for s in seeds)
    assert seed_of(0, "step", 3) == seed_of(0, "step", 3)


def test_half_a_cosine_from_one_number_to_another():
    values = [cosine(step, 8, 0.04, 0.4) for step in range(9)]
    assert values[0] == pytest.approx(0.04) and values[4] == pytest.approx(0.22) and values[8] == pytest.approx(0.4)
    assert values == sorted(values)
    assert cosine(3, 8, 0.4, 0.04) == pytest.approx(0.44 - values[3])
