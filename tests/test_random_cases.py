"""Random cases of every loss: any size, dtype, layout and temperature, any part of the gradients asked for.

Every test run tries some thousands, always the same ones. The long run is

    python -m pytest tests/test_random_cases.py --random-cases 100000 -n 2

which begins with those. It may be stopped at any time: ``--resume`` goes on after what has passed on the same sources.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_kernels import backends, testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, check

BACKENDS = [name for name in testing.backends_for("cpu") if backends.status()[name] is None]
ROOT = Path(__file__).resolve().parents[1]


class Layout(NamedTuple):
    """Where rows and columns lie in a larger block of memory."""

    steps: tuple[int, int] = (1, 1)
    offsets: tuple[int, int] = (0, 0)
    transposed: bool = False

    def __call__(self, t: Tensor) -> Tensor:
        """The same numbers laid out so, with NaN all around them."""
        shape = [n * step + offset for n, step, offset in zip(t.shape, self.steps, self.offsets, strict=True)]
        store = t.new_full(shape[::-1] if self.transposed else shape, torch.nan)
        block = store.T if self.transposed else store
        rows, columns = (slice(o, None, s) for o, s in zip(self.offsets, self.steps, strict=True))
        laid = block[rows, columns][: t.shape[0], : t.shape[1]]
        laid.copy_(t)
        return laid


class Drawn(NamedTuple):
    case: Case
    seed: int
    learned: bool  # parameters are tensors
    asking: frozenset[str]
    layouts: dict[str, Layout]


small = st.tuples(st.integers(1, 80), st.integers(1, 140))
large = st.tuples(st.sampled_from([127, 128, 129, 257, 400]), st.sampled_from([1, 2, 3, 16, 64, 127, 128, 129, 260]))
wide = st.tuples(st.integers(1, 12), st.integers(500, 2048))
plain = st.just(Layout())
layouts = st.one_of(
    plain,
    st.builds(
        Layout,
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(0, 2), st.integers(0, 2)),
        st.booleans(),
    ),
)
any_temperature = st.builds(lambda t, sign: sign * t, st.floats(0.005, 10), st.sampled_from([1, 1, 1, -1]))


@st.composite
def draws(draw: st.DrawFn) -> Drawn:
    spec = SPECS[draw(st.sampled_from(list(SPECS)))]
    n, d = draw(st.one_of(small, small, small, wide, large))
    allowed = testing.temperatures(spec)
    temperature = draw(any_temperature if allowed == testing.TEMPERATURES else st.sampled_from(allowed))
    dtype, trained = draw(st.sampled_from(testing.DTYPES)), draw(st.booleans())
    case = Case(
        spec.name, draw(st.sampled_from(BACKENDS)), "cpu", dtype, max(n, spec.smallest), d, temperature, trained
    )
    learned = draw(st.booleans())
    asking = draw(st.frozensets(st.sampled_from(spec.asking if learned else spec.features)))
    chosen = {name: draw(layouts) for name in spec.features}
    return Drawn(case, draw(st.integers(0, 2**31)), learned, asking, chosen)


def try_one(drawn: Drawn) -> None:
    case = drawn.case

    def function(**inputs):
        return case.fused(**inputs | {name: layout(inputs[name]) for name, layout in drawn.layouts.items()})

    check(function, case, case.inputs(drawn.seed, drawn.learned), drawn.asking)


def test_random_cases(chunk, chunk_size, request):
    passed = f"random_cases/{fingerprint()}/{chunk}"
    if request.config.getoption("resume") and request.config.cache.get(passed, False):
        pytest.skip("passed before")
    tried = 0

    @seed(chunk)
    @settings(max_examples=chunk_size, database=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow])
    @given(draws())
    def search(drawn: Drawn) -> None:
        nonlocal tried
        tried += 1
        try_one(drawn)

    search()
    assert tried >= chunk_size
    request.config.cache.set(passed, True)


def fingerprint() -> str:
    """Of everything that a case depends on."""
    sources = [Path(__file__), *ROOT.glob("ssl_kernels/**/*.py"), *ROOT.glob("csrc/**/*.[ch]*")]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
