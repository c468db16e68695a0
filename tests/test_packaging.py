"""What gets installed, how it is compiled, and what is said where it cannot be.

A compiler of paper stands in for the real one: it notes what it is asked and writes empty files, so that every way of
building takes seconds, and refuses what a test tells it to.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import ssl_kernels

ROOT = Path(__file__).resolve().parents[1]
X86 = platform.machine().lower() in ("x86_64", "amd64")

COMPILER = """\
#!{python}
import os, pathlib, sys
args = sys.argv[1:]
if "--version" in args:
    sys.exit(print("paper 1.0, release 13.0, V13.0.1"))
if "--list-gpu-arch" in args:
    sys.exit(print("compute_75 compute_80 compute_90 compute_100 compute_120"))
if any(word in args or any(arg.endswith(word) for arg in args) for word in {refuses!r}):
    sys.exit("probe.cpp:1:1: error: not on this paper")
pathlib.Path(args[args.index("-o") + 1]).write_bytes(b"")
if "-MF" in args:
    pathlib.Path(args[args.index("-MF") + 1]).write_text("")
with open({log!r}, "a") as log:
    log.write(" ".join(args) + "\\n")
"""


class Built(NamedTuple):
    folder: Path  # what was made
    record: dict  # of _build.json
    commands: list[str]  # that the compiler was given
    output: str


@pytest.fixture
def tree(tmp_path):
    """The sources as a newcomer gets them: nothing that was built here."""
    target = tmp_path / "tree"
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("ssl_kernels", "methods", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    return target


def run(*command: str | Path, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "PYTHONPATH", "TORCH_CUDA_ARCH_LIST")
    clean = {k: v for k, v in os.environ.items() if k not in ours} | {"CUDA_HOME": "/none"}
    ran = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=clean | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0 or not check, ran.stdout + ran.stderr
    return ran


def paper(tree: Path, *refuses: str) -> Path:
    """The compiler of paper, which refuses these flags and the files that end so."""
    path = tree.parent / "paper"
    path.write_text(COMPILER.format(python=sys.executable, refuses=refuses, log=str(tree.parent / "log")))
    path.chmod(0o755)
    return path


def toolkit(tree: Path, *refuses: str) -> Path:
    """A CUDA toolkit of paper."""
    (tree.parent / "cuda/bin").mkdir(parents=True)
    paper(tree, *refuses).rename(tree.parent / "cuda/bin/nvcc")
    return tree.parent / "cuda"


def install(tree: Path, compiler: Path | str, **environment: str) -> Built:
    target = tree.parent / "installed"
    arguments = "-m pip install -v --no-deps --no-build-isolation --no-index --target".split()
    ran = run(*arguments, target, tree, cwd=tree, CXX=str(compiler), **environment)
    log = tree.parent / "log"
    commands = log.read_text().splitlines() if log.exists() else []
    record = json.loads((target / "ssl_kernels/_build.json").read_text())
    return Built(target, record, commands, ran.stdout + ran.stderr)


def compiled(built: Built) -> dict[str, set[str]]:
    """The words of the command that compiled each file of csrc."""
    return {c.split(" -c ")[1].split()[0].split("/csrc/")[1]: set(c.split()) for c in built.commands if "/csrc/" in c}


# ------------------------------------------------------------------------------------------------- what is installed
def test_installed(tree):
    built = install(tree, paper(tree))
    files = {str(path.relative_to(built.folder)) for path in built.folder.rglob("*") if path.is_file()}
    sources = {str(p.relative_to(tree)) for top in ("ssl_kernels", "methods") for p in (tree / top).rglob("*.py")}
    assert sources <= files
    assert "ssl_kernels/py.typed" in files
    assert sum(name.startswith("ssl_kernels/_C.") for name in files) == 1
    assert {name.split("/")[0] for name in files} == {
        "ssl_kernels",
        "methods",
        f"ssl_kernels-{ssl_kernels.__version__}.dist-info",
    }
    assert built.record["extension"]
    assert built.record["compiler"] == "paper 1.0, release 13.0, V13.0.1"


def test_every_source_is_compiled_with_its_own_flags(tree):
    built = install(tree, paper(tree))
    commands = compiled(built)
    folders = tree / "csrc", tree / "csrc/cpu"
    expected = {str(path.relative_to(tree / "csrc")) for folder in folders for path in folder.glob("*.cpp")}
    special = {f"cpu/isa_{name}.cpp" for name in ("avx2", "avx_vnni", "avx512", "vnni", "amx")}
    assert set(commands) == (expected if X86 else expected - special)
    for name, words in commands.items():
        assert name in special or not any(word.startswith("-m") for word in words), f"{name} would not run anywhere"
        assert not any("torch" in word for word in words)
    if X86:
        assert "-mavx2" in commands["cpu/isa_avx2.cpp"]
        assert "-mavx512f" not in commands["cpu/isa_avx2.cpp"]
        assert "-mavx512f" in commands["cpu/isa_avx512.cpp"]
        assert {"-DSSL_HAVE_AVX2", "-DSSL_HAVE_AVX512"} <= commands["bind.cpp"]
    assert built.record["isas"] == [
        "portable",
        *(n for n in ("avx2", "avx_vnni", "avx512", "vnni", "amx") if f"cpu/isa_{n}.cpp" in commands),
    ]


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_what_the_compiler_refuses_is_left_out_and_said(tree):
    built = install(tree, paper(tree, "-mavx512f", "-fopenmp"))
    commands = compiled(built)
    assert "cpu/isa_avx2.cpp" in commands
    assert "cpu/isa_avx512.cpp" not in commands
    assert "-DSSL_HAVE_AVX512" not in commands["bind.cpp"]
    assert not any("-fopenmp" in command for command in built.commands)
    assert built.record["isas"] == ["portable", "avx2", "avx_vnni"]
    assert built.record["openmp"] is False
    assert "not on this paper" in built.record["skipped"]["avx512"]
    assert "ssl_kernels: built without openmp: the compiler refused it" in built.output


def test_flags_of_the_environment_are_heeded(tree):
    run("setup.py", "build_ext", "--inplace", cwd=tree, CXX=str(paper(tree)), CXXFLAGS="-g -DX='1 2'", LDFLAGS="-Wl,-z")
    *compilations, link = (tree.parent / "log").read_text().splitlines()
    assert all("-g -DX=1 2" in command for command in compilations)
    assert "-Wl,-z" in link


def test_source_distribution_holds_all_that_a_build_needs(tree):
    run("setup.py", "-q", "sdist", cwd=tree)
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {str(p.relative_to(tree)) for top in ("csrc", "ssl_kernels", "methods") for p in (tree / top).rglob("*.*")}
    assert needed <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"} <= names


def test_a_stale_build_in_place_stays_out_of_the_wheel(tree):
    package = tree / "ssl_kernels"
    (package / "_build.json").write_text('{"extension": true, "reason": "stale"}')
    (package / "_C.stale.so").write_text("")
    run(
        *"-m pip wheel --no-deps --no-build-isolation --no-index -w".split(),
        tree / "wheels",
        tree,
        cwd=tree,
        CXX="/none",
    )
    (wheel,) = (tree / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("ssl_kernels/_build.json"))
    assert not any(name.endswith(".so") for name in names)
    assert not record["extension"]
    assert "'/none' cannot be run" in record["reason"]


# --------------------------------------------------------------------------------------- where nothing can be built
FIRST_USE = """\
import warnings, torch, ssl_kernels
z = torch.randn(4, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ssl_kernels.nt_xent_loss(z, z)
    ssl_kernels.nt_xent_loss(z, z)
(warning,) = caught
print(warning.message)
try:
    ssl_kernels.nt_xent_loss(z, z, backend="cpu")
except ValueError as error:
    print(error)
"""


def test_without_a_compiler_it_installs_and_says_so_once(tree):
    built = install(tree, "/bin/false")
    reason = "the compiler '/bin/false' does not compile c++20"
    assert not built.record["extension"]
    assert reason in built.record["reason"]
    assert f"ssl_kernels: installed WITHOUT the C++ kernels: {reason}" in built.output

    warning, error = run("-c", FIRST_USE, cwd=tree.parent, PYTHONPATH=str(built.folder)).stdout.splitlines()
    assert "reference" in warning
    assert reason in warning
    assert "backend='cpu' cannot serve cpu tensors" in error
    assert reason in error

    report = run("-m", "ssl_kernels", cwd=tree.parent, PYTHONPATH=str(built.folder)).stdout
    assert f"not built: {reason}" in report


def test_a_clone_that_hides_what_was_installed_says_so(tree):
    warning, error = run("-c", FIRST_USE, cwd=tree).stdout.splitlines()
    for message in (warning, error):
        assert f"{tree} is a source tree; run pip install -e . there" in message


def test_sources_that_do_not_compile_are_named(tree):
    built = install(tree, paper(tree, "bind.cpp"))
    assert not built.record["extension"]
    assert "compilation failed (probe.cpp:1:1: error: not on this paper)" in built.record["reason"]


def test_in_place_a_failure_is_an_error(tree):
    ran = run("setup.py", "build_ext", "--inplace", cwd=tree, check=False, CXX=str(paper(tree, "bind.cpp")))
    assert ran.returncode != 0
    assert "ssl_kernels: cannot build the C++ kernels: compilation failed" in ran.stderr
    assert "Traceback" not in ran.stderr


# ---------------------------------------------------------------------------------------------------------------- CUDA
GENERATIONS = ["sm_80", "sm_90a", "sm_100", "compute_100"]


@pytest.mark.parametrize(
    ("asked", "targets"),
    [
        (None, GENERATIONS),
        ("8.0;9.0", ["sm_80", "sm_90a"]),
        ("7.5 8.6+PTX", ["sm_86", "compute_86"]),
        ("9.0a", ["sm_90a"]),
    ],
    ids=["default", "two", "ptx", "feature"],
)
def test_cuda_kernels_are_built_where_there_is_an_nvcc(tree, asked, targets):
    home = toolkit(tree)
    environment = {} if asked is None else {"TORCH_CUDA_ARCH_LIST": asked}
    built = install(tree, paper(tree), CUDA_HOME=str(home), **environment)
    assert built.record["cuda"] == {"extension": True, "reason": None, "compiler": "nvcc 13.0", "targets": targets}
    assert list(built.folder.glob("ssl_kernels/_cuda.*"))
    commands = compiled(built)
    for source in tree.glob("csrc/cuda/*.cu"):
        codes = {word.split(",code=")[1] for word in commands[f"cuda/{source.name}"] if word.startswith("-gencode")}
        assert codes == set(targets)
    assert ("-DSSL_WITH_SM90A" in commands["cuda/bind.cpp"]) == ("sm_90a" in targets)
    assert any("-cudart=static" in command for command in built.commands)
    assert not any("torch" in command for command in built.commands if "/csrc/cuda/" in command)
    report = run("-m", "ssl_kernels", cwd=tree.parent, PYTHONPATH=str(built.folder)).stdout
    assert f"built by nvcc 13.0 for {', '.join(targets)}" in report


@pytest.mark.parametrize(
    ("refuses", "asked", "reason"),
    [
        (("forward.cu",), "", "compilation failed (probe.cpp:1:1: error: not on this paper)"),
        ((), "Hopper", "TORCH_CUDA_ARCH_LIST: expected versions such as 8.0 or 9.0+PTX, got 'Hopper'"),
        ((), "7.0;7.5", "TORCH_CUDA_ARCH_LIST (7.0;7.5) names no GPU from 8.0 on"),
    ],
    ids=["refused", "unknown", "old"],
)
def test_cuda_kernels_that_cannot_be_built_are_left_out_and_said(tree, refuses, asked, reason):
    home = toolkit(tree, *refuses)
    built = install(tree, paper(tree), CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST=asked)
    assert built.record["extension"]
    assert not built.record["cuda"]["extension"]
    assert built.record["cuda"]["reason"] == reason
    assert not list(built.folder.glob("ssl_kernels/_cuda.*"))
    message = f"the CUDA kernels: {reason}"
    assert message in built.output
    report = run("-m", "ssl_kernels", cwd=tree.parent, PYTHONPATH=str(built.folder)).stdout
    assert reason in report


def test_without_nvcc_there_are_the_other_kernels(tree):
    run("setup.py", "build_ext", "--inplace", cwd=tree, CXX=str(paper(tree)))
    record = json.loads((tree / "ssl_kernels/_build.json").read_text())
    assert record["extension"]
    assert record["cuda"]["reason"] == "there is no bin/nvcc in CUDA_HOME (/none)"


# ------------------------------------------------------------------------------------------------- what was built here
def test_no_code_for_one_instruction_set_can_pass_for_common_code():
    """The linker keeps one copy of an inline function; the one compiled for AVX-512 would trap on older machines."""
    folder = next(ROOT.glob(f"build/ninja-*{sys.implementation.cache_tag}"), None)
    if folder is None or shutil.which("nm") is None:
        pytest.skip("nothing was built here, or there is no nm to look at it")
    shared = {}
    for path in folder.glob("*.o"):
        listed = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        symbols = (line.split()[-2:] for line in listed.splitlines())
        shared[path.stem] = {name for kind, name in symbols if kind in "Wu"}
    for special in {"isa_avx2", "isa_avx_vnni", "isa_avx512", "isa_vnni", "isa_amx"} & shared.keys():
        for other in shared.keys() - {special}:
            assert not shared[special] & shared[other], f"{special} and {other}"


def test_avx_vnni_asks_for_no_avx512():
    """Its instruction has two encodings, and processors of one of them: laptops know the one without AVX-512."""
    path = next(ROOT.glob(f"build/ninja-*{sys.implementation.cache_tag}/isa_avx_vnni.o"), None)
    if path is None or shutil.which("objdump") is None:
        pytest.skip("it was not built here, or there is no objdump to look at it")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    products = [line for line in lines if "vpdpwssd" in line]
    assert products and all("{vex}" in line for line in products)
    assert not any("%zmm" in line for line in lines)


def test_report_runs_and_names_every_backend():
    ran = run("-m", "ssl_kernels", cwd=ROOT)
    assert ran.stdout.startswith(f"ssl_kernels {ssl_kernels.__version__}\n")
    for name in ssl_kernels.backends.NAMES:
        assert f"\n  {name} " in ran.stdout
    assert not ran.stderr


def test_version_is_in_the_changelog():
    assert f"## [{ssl_kernels.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
