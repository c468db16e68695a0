"""What every test shares: few threads, the table of cases, and the GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from ssl_kernels import backends, testing
from ssl_kernels.backends.cpu import native

settings.register_profile("gate", deadline=None, derandomize=True, max_examples=60, print_blob=True)
settings.load_profile("gate")


CHUNK = 250  # random cases that make one test


class Place(NamedTuple):
    """Where a test runs: a backend, and the device whose tensors it gets."""

    backend: str
    device: str


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; skipped without one")
    torch.set_num_threads(1)  # several workers share the machine; tests of threads set their own number


def pytest_addoption(parser: pytest.Parser) -> None:
    cases = parser.getgroup("random cases", "tests/test_random_cases.py")
    cases.addoption("--random-cases", type=int, default=8000, metavar="N", help="how many in all (default: 8000)")
    cases.addoption("--resume", action="store_true", help="leave out those that passed before, on the same sources")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``case``, ``precision_case`` and ``place`` run over the whole table, the GPU's part of it marked ``gpu``."""
    if "chunk" in metafunc.fixturenames:
        metafunc.parametrize("chunk", range(-(-metafunc.config.getoption("random_cases") // CHUNK)))
    tables = {"case": testing.cases, "precision_case": testing.precision_cases, "place": _places}
    for name, table in tables.items():
        if name not in metafunc.fixturenames:
            continue
        params = [_param(entry) for entry in table("cpu")]
        if torch.cuda.is_available():
            params += [_param(entry, pytest.mark.gpu) for entry in table("cuda")]
        else:
            params.append(pytest.param(None, id="cuda", marks=pytest.mark.gpu))
        metafunc.parametrize(name, params)


def _places(device: str) -> list[Place]:
    return [Place(backend, device) for backend in testing.backends_for(device)]


def _param(entry: testing.Case | Place, *marks: pytest.MarkDecorator):
    reason = backends.status()[entry.backend]
    name = "-".join(entry) if isinstance(entry, Place) else str(entry)
    skip = [pytest.mark.skip(reason=f"{entry.backend}: {reason}")] if reason else []
    return pytest.param(entry, id=name, marks=[*marks, *skip])


@pytest.fixture(scope="session")
def chunk_size() -> int:
    return CHUNK


@pytest.fixture(params=native.C.isas() if native.C is not None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels run on each instruction set that this machine has, for the length of a test."""
    before = native.C.isa()
    native.C.use_isa(request.param)
    yield request.param
    native.C.use_isa(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
