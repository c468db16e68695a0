"""Random cases of every loss: any size, dtype, layout and temperature, any part of the gradients asked for.

Every test run tries some thousands, always the same ones. The long run is

    python -m pytest tests/test_random_cases.py --random-cases 100000 -n 2

which begins with those. It may be stopped at any time: ``--resume`` goes on after what has passed on the same sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_kernels import backends, testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, check, evaluate

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


# ------------------------------------------------------------------------------------------- arguments that few pass
Inputs = dict[str, Any]


def among_other_texts(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    texts = torch.cat([like(k), inputs["text_features"], like(2 * k)])
    return inputs | {"text_features": texts, "offset": k}


def with_hard_negatives(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    return inputs | {"negatives": like(k)}


def with_ids(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    n = len(inputs["image_features"])
    texts = torch.cat([inputs["text_features"], like(k)])
    return inputs | {"text_features": texts, "ids": torch.arange(n) % k, "text_ids": torch.arange(n + k) % (k + 1)}


def among_other_keys(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    return inputs | {"positive": torch.cat([like(k), inputs["positive"], like(1)]), "offset": k}


def with_negatives_of_its_own(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    n, d = inputs["query"].shape
    return inputs | {"negatives": like(n * k).view(n, k, d)}


def of_form_in(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    return inputs | {"form": "in"}


def of_form_pairs(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    return inputs | {"form": "pairs"}


def in_few_classes(inputs: Inputs, like: Callable[[int], Tensor], k: int) -> Inputs:
    return inputs | {"labels": inputs["labels"] % k - 1}


TWISTS: dict[str, tuple[Callable[..., Inputs], ...]] = {
    "clip": (among_other_texts, with_hard_negatives, with_ids),
    "siglip": (among_other_texts,),
    "info_nce": (among_other_keys, with_negatives_of_its_own),
    "sup_con": (of_form_in, of_form_pairs, in_few_classes),
}


def twisted(twist: Callable[..., Inputs] | None, drawn: Drawn) -> Inputs:
    case = drawn.case
    inputs = case.inputs(drawn.seed, drawn.learned)
    generator = torch.Generator().manual_seed(drawn.seed + 1)

    def like(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, case.d, dtype=case.dtype, generator=generator), dim=1)

    return twist(inputs, like, 1 + drawn.seed % 7) if twist else inputs


class Drawn(NamedTuple):
    case: Case
    seed: int
    learned: bool  # parameters are tensors
    asking: frozenset[str]
    layouts: dict[str, Layout]
    twist: Callable[..., Inputs] | None


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
    d = max(d, spec.narrowest)
    n = min(n, math.isqrt(int(min(spec.largest / 4, 1e12) / d)))
    allowed = testing.temperatures(spec)
    temperature = draw(any_temperature if allowed == testing.TEMPERATURES else st.sampled_from(allowed))
    dtype, trained = draw(st.sampled_from(testing.DTYPES)), draw(st.booleans())
    case = Case(
        spec.name, draw(st.sampled_from(BACKENDS)), "cpu", dtype, max(n, spec.smallest), d, temperature, trained
    )
    learned = draw(st.booleans())
    asking = draw(st.frozensets(st.sampled_from(spec.asking if learned else spec.features)))
    chosen = {name: draw(layouts) for name in spec.features}
    twist = draw(st.sampled_from([None, *TWISTS.get(spec.name, ())]))
    return Drawn(case, draw(st.integers(0, 2**31)), learned, asking, chosen, twist)


def try_one(drawn: Drawn) -> None:
    case = drawn.case

    def function(**inputs):
        return case.fused(**inputs | {name: layout(inputs[name]) for name, layout in drawn.layouts.items()})

    check(function, case, twisted(drawn.twist, drawn), drawn.asking)


def test_random_cases(chunk, chunk_size, request):
    passed = f"random_cases/{fingerprint()}/{chunk}"
    cache = getattr(request.config, "cache", None)  # pytest can be told to keep none
    if cache and request.config.getoption("resume") and cache.get(passed, False):
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
    if cache:
        cache.set(passed, True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "twist"), [(n, t) for n, twists in TWISTS.items() for t in twists])
def test_these_arguments_compile_in_one_graph(name, twist, backend):
    case = Case(name, backend, "cpu", torch.float32, 12, 20, 0.1)
    inputs = twisted(twist, Drawn(case, 0, True, frozenset(), {}, None))
    torch._dynamo.reset()
    compiled = torch.compile(case.fused, fullgraph=True, backend="aot_eager")
    expected, got = (evaluate(function, inputs, case.spec.asking) for function in (case.fused, compiled))
    for result in expected.names:
        torch.testing.assert_close(got[result], expected[result])


def fingerprint() -> str:
    """Of everything that a case depends on."""
    sources = [Path(__file__), *ROOT.glob("ssl_kernels/**/*.py"), *ROOT.glob("csrc/**/*.[ch]*")]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
