"""The engines of the CPU backend that do not multiply by plain fused multiply-adds: AMX tiles, and integers.

AMX runs on the tiles of this machine where it has them, and on emulated ones anywhere: the emulated build is the
engine's own source with ``tests/amx/amx_tiles.h`` in the place of the header of that name, and needs AVX-512.
Float32 at "highest" is judged by the rule for every backend, against eager float32.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssl_kernels import nt_xent_loss, ops, testing
from ssl_kernels._native import build_info, load
from ssl_kernels.backends.cpu import native
from ssl_kernels.testing import Case, evaluate, relative_error

ROOT = Path(__file__).resolve().parents[1]
FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
NATIVE = load()[0]

EMULATED = "amx" in build_info().get("isas", []) and {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= set(FLAGS)
# Those with integers, and what serves them where no number may be rounded.
EXACTLY = {"vnni": "avx512", "avx_vnni": "avx2", "avx2": "avx2"}
ENGINES = [
    *(["emulated amx"] if EMULATED else []),
    *(name for name in ("amx", *EXACTLY) if NATIVE and name in NATIVE.isas()),
]
if not ENGINES:
    pytest.skip("neither AMX nor the AVX-512 that emulates it nor AVX2 is here", allow_module_level=True)
AMX, GRID = [name for name in ENGINES if name.endswith("amx")], [name for name in ENGINES if name in EXACTLY]
# the first of a machine's is the default, which has met the table of all cases in tests/test_losses.py; few of them are
# large enough for AVX2's integers
UNTRIED = [name for name in ENGINES if name != "avx2" and (not NATIVE or name != NATIVE.isas()[0])]

FLOAT32, HALF = torch.float32, (torch.bfloat16, torch.float16)
fused = partial(nt_xent_loss, backend="cpu")


# ---------------------------------------------------------------------------------------------------------- the engines
def build(folder: Path, result: str) -> Path:
    """Builds what is in ``folder``. Not optimised much: the emulation is most of the work, and quick enough."""
    flags = os.environ.get("CXXFLAGS", "") + " -O1 -w"
    environment = os.environ | {"CXXFLAGS": flags, "CUDA_HOME": "/none"}  # minutes for kernels that nobody asks for
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "out"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(shutil.copy(next(folder.glob("out/ssl_kernels/_C*.so")), folder / result))


def once(folder: Path, result: str, work) -> Path:
    """``folder / result``, made by the first of the processes that run these tests."""
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / result if (folder / result).exists() else work()


def load_from(path: Path) -> ModuleType:
    # a name of its own: pybind11 keeps modules by their names
    spec = importlib.util.spec_from_file_location(f"{path.stem}._C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "amx"


@pytest.fixture(scope="session")
def emulated_path(sources) -> Path:
    def work():
        shutil.copy(ROOT / "setup.py", sources)
        shutil.copytree(ROOT / "csrc", sources / "csrc", ignore=shutil.ignore_patterns("isa_avx2.cpp", "isa_*vnni.cpp"))
        shutil.copytree(ROOT / "tests/amx", sources / "csrc/cpu", dirs_exist_ok=True)
        return build(sources, "emulated.so")

    return once(sources, "emulated.so", work)


@pytest.fixture(scope="session")
def emulated(emulated_path) -> ModuleType:
    module = load_from(emulated_path)
    assert module.isas()[:2] == ["amx", "avx512"]
    return module


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch) -> ModuleType:
    """The backend served by one of them, for the length of a test."""
    module = request.getfixturevalue("emulated") if request.param == "emulated amx" else NATIVE
    monkeypatch.setattr(native, "C", module)
    before = module.isa()
    module.use_isa(request.param.removeprefix("emulated "))
    yield module
    module.use_isa(before)


def rows(engine: ModuleType, usual: int) -> int:
    """How many a problem has that is to reach the engine: integers leave small ones to plain multiply-adds."""
    return max(usual, 600) if engine.isa() in EXACTLY else usual


def of(names: list[str]):
    """Parametrises a test that asks for ``engine`` with some of them."""
    return pytest.mark.parametrize("engine", names, indirect=True)


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------- values, gradients
def mine(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.backend == "cpu" and case.dtype != torch.float64]


@of(UNTRIED)
@pytest.mark.parametrize("cell", mine(testing.cases("cpu")) if UNTRIED else [], ids=str)
def test_every_case_of_the_table(engine, cell):
    testing.check(cell.fused, cell)


@of(UNTRIED)
@pytest.mark.parametrize("cell", mine(testing.precision_cases("cpu")) if UNTRIED else [], ids=str)
def test_as_precise_as_eager(engine, cell):
    testing.check_precision(cell.fused, cell)


# Rows around the edges of tiles (16, 32), panels (64), strips of G (256, 512) and blocks; widths around steps (32)
LARGE = [(31, 31), (32, 32), (97, 1), (128, 31), (300, 130), (513, 64), (1025, 33)]


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.1, 2.0, -0.1])
@pytest.mark.parametrize(("n", "d"), LARGE)
def test_large_problems(engine, n, d, temperature):
    for dtype in (FLOAT32, *HALF):
        testing.check(fused, Case("nt_xent", "cpu", "cpu", dtype, n, d, temperature))


@pytest.mark.parametrize("loss", ["clip", "info_nce", "info_nce_queue", "siglip"])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize(("n", "d"), [(97, 1), (300, 130), (600, 64)])
def test_large_problems_of_two_sets(engine, loss, n, d, temperature):
    for dtype in (FLOAT32, *HALF):
        case = Case(loss, "cpu", "cpu", dtype, n, d, temperature)
        testing.check(case.fused, case)


@of(AMX)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 10.0, -0.1])
@pytest.mark.parametrize(("n", "d"), [(3, 5), (33, 64), (257, 130), (520, 33), (128, 512)])
def test_less_than_highest_costs_what_it_says(engine, precision, n, d, temperature):
    case = Case("nt_xent", "cpu", "cpu", FLOAT32, n, d, temperature)
    inputs = case.inputs()
    truth = testing.oracle(case.spec, inputs)
    errors = {}
    for name, allowed in {"highest": 5e-6, "high": 5e-5, "medium": 4e-2}.items():
        precision(name)
        got = evaluate(case.fused, inputs)
        errors[name] = max(relative_error(got[z], truth[z]) for z in ("z1", "z2"))
        assert errors[name] <= allowed, name
    assert errors["medium"] > errors["high"], "fewer products must show, or the setting did not arrive"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [0.3, 14.0, 150.0, -7.0, 0.0])
@pytest.mark.parametrize(
    ("m", "period", "parts"), [(1, 1, 1), (40, 1, 1), (70, 70, 1), (99, 33, 3), (260, 65, 4), (699, 233, 3)]
)
def test_the_op_in_every_form(engine, m, period, parts, scale, normalize):
    generator = torch.Generator().manual_seed(m)
    z = torch.randn(m, 20, generator=generator) / 20**0.5
    weights = torch.randn(m // period, m, generator=generator)

    def results(x, scale, backend):
        x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
        neg, pos, top = ops.self_lse(x.chunk(parts), scale, period=period, normalize=normalize, backend=backend)
        # exponentials, bounded by one, so that an absent side (-inf) counts as nothing
        (neg.exp() * weights[0].to(neg)).sum().add((pos.exp() * weights[1:].to(pos)).sum()).backward()
        return [neg + top, pos + top, x.grad, scale.grad]

    for dtype, tolerance in ((FLOAT32, 2e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        x = z.to(dtype)
        got = results(x, torch.tensor(scale), "cpu")
        expected = results(x.double(), torch.tensor(scale).double(), "reference")
        for g, e in zip(got, expected, strict=True):
            largest = max([1.0, *e[e.isfinite()].abs().flatten().tolist()])
            torch.testing.assert_close(g.double(), e, rtol=tolerance, atol=tolerance * largest)


# ------------------------------------------------------------------------------------------------------- unusual inputs
@pytest.mark.parametrize("dtype", [FLOAT32, *HALF], ids=str)
def test_nan_comes_out_and_stays_in_its_rows(engine, dtype):
    count = rows(engine, 200)
    z = torch.randn(count, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    z[3, 7] = torch.nan
    neg, _, top = ops.self_lse([z], period=count // 2, backend="cpu")
    assert (neg + top).isnan().all()  # every row sees the one that is NaN
    # its twin and itself are left out, so with nothing else there is no NaN to see
    neg, pos, top = ops.self_lse([z[3:5]], period=1, backend="cpu")
    assert (neg == -torch.inf).all() or neg.isnan().all()
    assert pos.isnan().all()


@pytest.mark.parametrize("dtype", [FLOAT32, *HALF], ids=str)
def test_rows_of_any_length(engine, dtype):
    """Zero rows, short ones, and those that are so long that their squares, or nearly so, overflow."""
    n = rows(engine, 120) // 2
    inputs = Case("nt_xent", "cpu", "cpu", dtype, n, 48, 0.2).inputs()
    for z in (inputs["z1"], inputs["z2"]):
        z[5] = 0
        z[7] *= 1e-3
        for row, longest in ((9, 1e15), (11, 1e30)):
            z[row] *= min(longest, 60000) if dtype == torch.float16 else longest
            z[row] = z[row].nan_to_num()
    got = evaluate(fused, inputs)
    # as float32 has it: rows whose squares overflow are divided by infinity
    plain = {name: value.float() for name, value in inputs.items()}
    truth = evaluate(testing.SPECS["nt_xent"].reference, plain)
    exact = dtype == FLOAT32 or engine.isa() == "amx"
    assert abs(got.loss - truth.loss) < (1e-6 if exact else 1e-5) * truth.loss
    usual = [i for i in range(n) if i not in (5, 9, 11)]
    for name in ("z1", "z2"):
        assert got[name].isfinite().all()
        assert relative_error(got[name][usual], truth[name][usual]) < (2e-6 if dtype == FLOAT32 else 4e-3)


@of(AMX)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rows_of_16_bits_are_not_rounded_again(engine, dtype):
    """The operands are the rows themselves: their direction reaches the products with every bit it has."""
    inputs = Case("nt_xent", "cpu", "cpu", dtype, 300, 64, 0.02).inputs()
    got, truth = evaluate(fused, inputs), testing.oracle(testing.SPECS["nt_xent"], inputs)
    assert relative_error(got.loss, truth.loss) < 3e-7
    powers = 2.0 ** torch.arange(-1, 2).repeat(100)[:, None].to(dtype)
    again = evaluate(fused, inputs | {name: inputs[name] * powers for name in ("z1", "z2")})
    assert torch.equal(again.loss, got.loss) and torch.equal(again["temperature"], got["temperature"])


# ----------------------------------------------------------------------------------------------------- reproducibility
@pytest.mark.parametrize("name", ["highest", "high", "medium"])
@pytest.mark.parametrize(("n", "d", "temperature"), [(515, 40, 0.1), (700, 33, 0.005)])
def test_the_same_bits_on_any_number_of_threads(engine, threads, precision, n, d, temperature, name):
    precision(name)
    for dtype in (FLOAT32, *HALF) if name == "highest" else (FLOAT32,):
        inputs = Case("nt_xent", "cpu", "cpu", dtype, n, d, temperature).inputs()
        results = []
        for number in (1, 2, 3, 5):
            threads(number)
            results.append(evaluate(fused, inputs))
        for other in results[1:]:
            assert all(torch.equal(other[key], results[0][key]) for key in other.names)


def digest(case: Case) -> str:
    """All results of a case, to the bit."""
    got = evaluate(case.fused, case.inputs())
    joined = torch.cat([got[name].reshape(-1).float() for name in got.names])
    return hashlib.sha256(joined.numpy().tobytes()).hexdigest()


def digests(engine: ModuleType) -> list[str]:
    cases = [(dtype, rows(engine, 200) // 2, 50, tau) for dtype in (FLOAT32, *HALF) for tau in (0.005, 0.1)]
    return [digest(Case("nt_xent", "cpu", "cpu", *case)) for case in cases]


def test_nothing_reads_memory_that_nothing_wrote(engine, request):
    """Fresh memory full of huge numbers (glibc's MALLOC_PERTURB_) changes no bit."""
    emulated = "emulated" in request.node.name
    path = request.getfixturevalue("emulated_path") if emulated else Path(NATIVE.__file__)
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import test_cpu_engines as t\n"
        "t.native.C = t.load_from(Path(sys.argv[2])) if sys.argv[4] else t.NATIVE\n"
        "t.native.C.use_isa(sys.argv[3])\n"
        "print(*t.digests(t.native.C))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(path), engine.isa(), "emulated" * emulated]
    environment = os.environ | {"MALLOC_PERTURB_": "128"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == digests(engine)


# ------------------------------------------------------------------------------------------------ on a grid of integers
def rounded_to_tf32(z: torch.Tensor) -> torch.Tensor:
    """Float32 with the 10 bits that its rows are given where torch's precision is "high" and a GPU multiplies."""
    bits = z.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@of(GRID)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 10.0, -0.1])
@pytest.mark.parametrize(("n", "d"), [(300, 5), (257, 130), (520, 33), (256, 512), (256, 2048)])
def test_the_grid_is_as_fine_as_what_high_promises(engine, precision, n, d, temperature):
    case = Case("nt_xent", "cpu", "cpu", FLOAT32, n, d, temperature)
    inputs = case.inputs()
    truth = testing.oracle(case.spec, inputs)
    unit = {name: torch.nn.functional.normalize(inputs[name]) for name in ("z1", "z2")}
    exact = testing.oracle(case.spec, inputs | unit)
    less = testing.oracle(case.spec, inputs | {name: rounded_to_tf32(z) for name, z in unit.items()})
    for name in ("high", "medium"):
        precision(name)
        got = evaluate(case.fused, inputs)
        for z in ("z1", "z2"):
            theirs = relative_error(less[z], exact[z])
            assert 1e-6 < relative_error(got[z], truth[z]) <= max(2 * theirs, 2**-11), name
    precision("highest")
    exactly = evaluate(case.fused, inputs)
    assert max(relative_error(exactly[z], truth[z]) for z in ("z1", "z2")) <= 5e-6
    engine.use_isa(EXACTLY[engine.isa()])
    again = evaluate(case.fused, inputs)
    assert all(torch.equal(exactly[name], again[name]) for name in exactly.names)


@of(GRID)
@pytest.mark.parametrize("d", [1, 64, 200])
@pytest.mark.parametrize("temperature", [0.05, 5.0])
def test_no_sum_of_products_leaves_32_bits(engine, d, temperature):
    """Rows of one direction, along one axis or along all of them: the largest sums that there can be."""
    generator = torch.Generator().manual_seed(d)
    for axis in (torch.eye(1, d)[0], torch.ones(d)):
        for signs in (torch.ones(2, 600, 1), torch.randint(0, 2, (2, 600, 1), generator=generator) * 2.0 - 1):
            z = signs * axis + 1e-2 * torch.randn(2, 600, d, generator=generator)
            for loss in ("nt_xent", "siglip"):
                case = Case(loss, "cpu", "cpu", torch.bfloat16, 600, d, temperature)
                features = torch.nn.functional.normalize(z, dim=-1).bfloat16()
                testing.check(case.fused, case, case.inputs() | dict(zip(case.spec.features, features, strict=True)))


@of(GRID)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_the_largest_weight_is_not_rounded(engine, temperature):
    """Rows of width 1 are equal or opposite and have no error; nor may the equal weights of their gradient have one."""
    case = Case("nt_xent", "cpu", "cpu", torch.bfloat16, 600, 1, temperature)
    inputs = case.inputs()
    got, truth = evaluate(case.fused, inputs), testing.oracle(case.spec, inputs)
    assert relative_error(got["temperature"], truth["temperature"]) < 2e-6


@of(GRID)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6])
def test_derivatives_of_any_size_come_back(engine, precision, size):
    """Every row of the gradient's weights has a grid of its own, whatever the loss is multiplied with."""
    z = torch.randn(600, 40, generator=torch.Generator().manual_seed(0))

    def gradient(x, size, backend):
        x.requires_grad_()
        neg, _, top = ops.self_lse([x], torch.tensor(3.0).to(x), period=300, backend=backend)
        ((neg + top) * size).sum().backward()
        return x.grad.double() / size

    precision("high")
    assert relative_error(gradient(z.clone(), size, "cpu"), gradient(z.double(), 1.0, "reference")) < 2**-11


# -------------------------------------------------------------------------------------------------------- seeded faults
FAULTS = {
    # the padding's columns take part
    "keep[r] = ~uint32_t(0) >> (tile_side - (end - tile.j));": "keep[r] = ~uint32_t(0);",
    # the backward pass uses tiles that nobody configured
    "  const tiles::Scope scope;\n  const Operands<M> x(s, *s.x), y(s, *s.y);\n  const bool y_too": (
        "  const Operands<M> x(s, *s.x), y(s, *s.y);\n  const bool y_too"
    ),
}


@pytest.mark.skipif(not EMULATED, reason="emulating AMX takes AVX-512")
def test_these_tests_would_notice(sources, emulated_path, monkeypatch):
    def work():
        sweep = sources / "csrc/cpu/amx_sweep.h"
        text = sweep.read_text()
        for right, wrong in FAULTS.items():
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        sweep.write_text(text)
        return build(sources, "faulty.so")

    faulty = load_from(once(sources, "faulty.so", work))
    monkeypatch.setattr(native, "C", faulty)
    x = torch.randn(150, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()  # padded to 192 rows
    wrong = ops.self_lse([x], period=75, backend="cpu")
    right = ops.self_lse([x.double()], period=75, backend="reference")
    assert relative_error(wrong[0] + wrong[2], right[0] + right[2]) > 1e-3
    with pytest.raises(RuntimeError, match="AMX: tile 0 used without a configuration"):
        wrong[0].sum().backward()
