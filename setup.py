"""Builds ``ssl_kernels._C`` from csrc: pybind11 and ninja, no torch, and never an error for want of a compiler.

``pip install`` goes on without the extension where it cannot be built; ``setup.py build_ext``, asked for by name, fails
instead. Either way ``ssl_kernels/_build.json`` records what was built and why the rest was not, for the package to say.

Heeded: CXX, CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS, MAX_JOBS.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULE = "ssl_kernels._C"

STANDARD = "-std=c++20"
FLAGS = "-O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast -pthread -Wall".split()

AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = [*AVX2, *"-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512".split()]
AMX = [*AVX512, *"-mavx512bf16 -mamx-tile -mamx-bf16".split()]

# csrc/cpu/isa_<name>.cpp is compiled with its own flags, and only if this much of it compiles. All other files are
# baseline code that may run anywhere; SSL_HAVE_<NAME> tells them which of these to expect.
ISAS = {
    "avx2": (AVX2, "__m256 f(__m256 a) { return _mm256_fmadd_ps(a, a, a); }"),
    "avx512": (AVX512, "__m512 f(__m512 a) { return _mm512_fmadd_ps(a, a, a); }"),
    "amx": (AMX, "void f() { _tile_dpbf16ps(0, 1, 2); }"),
}


class CannotBuild(Exception):
    """Why there will be no extension, in one line for the reader."""


@dataclass
class Compiler:
    """A C++ compiler with the flags common to every file, and what it was found to be capable of."""

    command: list[str]
    version: str
    flags: list[str]
    link: list[str]
    isas: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    openmp: bool = False

    @classmethod
    def find(cls) -> Compiler:
        if named := shlex.split(os.environ.get("CXX", "")):
            command = named
        elif found := next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None):
            command = [found]
        else:
            raise CannotBuild("no C++ compiler found (looked for g++, clang++ and c++; CXX names another)")
        try:
            asked = subprocess.run([*command, "--version"], capture_output=True, text=True)
        except OSError as error:
            raise CannotBuild(f"the compiler {shlex.join(command)!r} cannot be run ({error.strerror})") from None
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        compiler = cls(
            command,
            version=next(iter(asked.stdout.splitlines()), Path(command[0]).name),
            flags=[STANDARD, *FLAGS, *_environment("CPPFLAGS", "CFLAGS", "CXXFLAGS")],
            link=[*shared, "-pthread", *_environment("LDFLAGS")],
        )
        if complaint := compiler.complaint("int f() { return 0; }"):
            raise CannotBuild(f"the compiler {shlex.join(command)!r} does not compile {STANDARD[5:]} ({complaint})")
        compiler._probe()
        return compiler

    def _probe(self) -> None:
        if platform.machine().lower() in ("x86_64", "amd64"):
            for name, (flags, code) in ISAS.items():
                if not Path(ROOT, f"csrc/cpu/isa_{name}.cpp").exists():
                    continue
                if complaint := self.complaint("#include <immintrin.h>\n" + code, flags):
                    self.skipped[name] = f"the compiler refused it ({complaint})"
                else:
                    self.isas.append(name)
        else:
            self.skipped |= dict.fromkeys(ISAS, f"not for {platform.machine()}")
        threads = "#include <omp.h>\nint f() { return omp_get_max_threads(); }"
        if complaint := self.complaint(threads, ["-fopenmp"], link=True):
            self.skipped["openmp"] = f"the compiler refused it ({complaint})"
        else:
            self.openmp = True
            self.flags.append("-fopenmp")
            self.link.append("-fopenmp")

    def complaint(self, code: str, flags: list[str] | tuple[str, ...] = (), link: bool = False) -> str:
        """What the compiler has against ``code``, in one line; empty if nothing."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(code + "\n")
            mode = self.link if link else ["-c"]
            command = [*self.command, *self.flags, *flags, *mode, str(source), "-o", f"{source}.o"]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode == 0 and Path(f"{source}.o").exists():
                return ""
            return _first_error(ran.stderr) or f"exit status {ran.returncode}"

    def defines(self) -> list[str]:
        return [f"-DSSL_HAVE_{name.upper()}" for name in self.isas]


class Ninja:
    """A build file under construction, and its execution."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = ["ninja_required_version = 1.3"]

    def rule(self, name: str, command: list[str], *, depfile: bool = False) -> None:
        """A command of which ``$in``, ``$out`` and ``$flags`` are filled in by each use."""
        self.lines += [f"rule {name}", f"  command = {' '.join(map(_quote, command))}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(self, rule: str, out: str, *inputs: str | Path, flags: list[str] | tuple[str, ...] = ()) -> str:
        escaped = (str(i).replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for i in inputs)
        self.lines += [f"build {out}: {rule} {' '.join(escaped)}", f"  flags = {' '.join(map(_quote, flags))}"]
        return out

    def run(self, verbose: bool) -> None:
        program = _ninja_program()
        self.folder.mkdir(parents=True, exist_ok=True)
        Path(self.folder, "build.ninja").write_text("\n".join(self.lines) + "\n")
        command = [program, "-C", str(self.folder), *(["-v"] if verbose else [])]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(ran.stdout, end="", flush=True)
        if ran.returncode:
            raise CannotBuild(f"compilation failed ({_first_error(ran.stdout) or f'ninja: {ran.returncode}'})")


class BuildExtension(build_ext):
    """``build_ext`` by ninja, which leaves out what cannot be built and writes down why."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        record = {"extension": False, "reason": None, "isas": [], "openmp": False, "compiler": "", "skipped": {}}
        try:
            compiler = Compiler.find()
            record |= {"compiler": compiler.version, "skipped": compiler.skipped}
            built = self._compile(compiler)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a process may have the old one mapped
            shutil.copy(built, target)
            record |= {"extension": True, "isas": ["portable", *compiler.isas], "openmp": compiler.openmp}
            for what, why in compiler.skipped.items():
                print(f"ssl_kernels: built without {what}: {why}", file=sys.stderr)
        except CannotBuild as reason:
            record["reason"] = str(reason)
            if "build_ext" in self.distribution.commands:
                raise SystemExit(f"ssl_kernels: cannot build the C++ kernels: {reason}") from None
            target.unlink(missing_ok=True)
            print(f"ssl_kernels: installed WITHOUT the C++ kernels: {reason}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(target.parent, "_build.json").write_text(json.dumps(record, indent=2) + "\n")

    def _compile(self, compiler: Compiler) -> Path:
        # One folder for every way of building (wheel, editable, in place), so that each continues where another left
        # off: ninja compares commands as well as times.
        ninja = Ninja(ROOT / "build" / f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
        include = [f"-I{ROOT / 'csrc'}", "-isystem", sysconfig.get_path("include"), "-isystem", _pybind11_include()]
        common = [*compiler.command, "-MMD", "-MF", "$out.d", *include, *compiler.defines(), *compiler.flags]
        ninja.rule("cxx", [*common, "$flags", "-c", "$in", "-o", "$out"], depfile=True)
        ninja.rule("link", [*compiler.command, "$in", *compiler.link, "-o", "$out"])

        sources = [*sorted(ROOT.glob("csrc/cpu/*.cpp")), *sorted(ROOT.glob("csrc/*.cpp"))]
        objects = []
        for source in sources:
            isa = source.stem.removeprefix("isa_") if source.stem.startswith("isa_") else ""
            if isa in ISAS and isa not in compiler.isas:
                continue
            flags = ISAS[isa][0] if isa in ISAS else []
            objects.append(ninja.build("cxx", f"{source.stem}.o", source, flags=flags))
        module = ninja.build("link", "_C.so", *objects)
        ninja.run(verbose=self.verbose > 1)
        return ninja.folder / module

    def copy_extensions_to_source(self) -> None:
        """In place and editable: the extension and the record, or the record alone, and no extension of before."""
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
            package = Path(build_py.get_package_dir("ssl_kernels"))
            Path(package, built.name).unlink(missing_ok=True)
            for file in (built, built.with_name("_build.json")):
                if file.exists():
                    shutil.copy(file, package / file.name)


def _environment(*names: str) -> list[str]:
    return [word for name in names for word in shlex.split(os.environ.get(name, ""))]


def _quote(word: str) -> str:
    """A word for a command in a ninja file; a leading ``$`` names a variable of ninja's."""
    return word if word.startswith("$") else shlex.quote(word).replace("$", "$$")


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")[:300]


def _pybind11_include() -> str:
    if find_spec("pybind11"):
        import pybind11

        return pybind11.get_include()
    # Without build isolation and without network: torch carries the same headers. Found, not imported.
    torch = find_spec("torch")
    if torch and torch.origin and Path(torch.origin).with_name("include").joinpath("pybind11").is_dir():
        return str(Path(torch.origin).with_name("include"))
    raise CannotBuild("pybind11 is not installed")


def _ninja_program() -> str:
    if find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    if found := shutil.which("ninja"):
        return found
    raise CannotBuild("ninja is not installed")


setup(license="Apache-2.0", ext_modules=[Extension(MODULE, sources=[])], cmdclass={"build_ext": BuildExtension})
