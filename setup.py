"""Builds ``ssl_kernels._C`` and, where there is an nvcc, ``ssl_kernels._cuda``: pybind11 and ninja, no torch, and never
an error for want of a compiler.

``pip install`` goes on without an extension that cannot be built; ``setup.py build_ext``, asked for by name, fails
instead, unless all that is missing is nvcc. Either way ``ssl_kernels/_build.json`` records what was built and why the
rest was not, for the package to say.

Heeded: CXX, CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS, MAX_JOBS; for CUDA also CUDA_HOME (no other nvcc is looked for then:
``CUDA_HOME=/none`` builds without), NVCC_APPEND_FLAGS and TORCH_CUDA_ARCH_LIST.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PLATFORM = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
MODULE, CUDA_MODULE = "ssl_kernels._C", "ssl_kernels._cuda"

STANDARD = "-std=c++20"
FLAGS = "-O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast -pthread -Wall".split()

AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = [*AVX2, *"-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512".split()]
VNNI = [*AVX512, "-mavx512vnni"]
AVX_VNNI = [*AVX2, "-mavxvnni"]
AMX = [*AVX512, *"-mavx512bf16 -mamx-tile -mamx-bf16".split()]

# csrc/cpu/isa_<name>.cpp is compiled with its own flags, and only if this much of it compiles. All other files are
# baseline code that may run anywhere; SSL_HAVE_<NAME> tells them which of these to expect.
ISAS = {
    "avx2": (AVX2, "__m256 f(__m256 a) { return _mm256_fmadd_ps(a, a, a); }"),
    "avx_vnni": (AVX_VNNI, "__m256i f(__m256i a) { return _mm256_dpwssd_avx_epi32(a, a, a); }"),
    "avx512": (AVX512, "__m512 f(__m512 a) { return _mm512_fmadd_ps(a, a, a); }"),
    "vnni": (VNNI, "__m512i f(__m512i a) { return _mm512_dpwssd_epi32(a, a, a); }"),
    "amx": (AMX, "void f() { _tile_dpbf16ps(0, 1, 2); }"),
}


# Every GPU from sm_80 on finds code in these: that of three generations, the second with Hopper's own instructions, and
# for later ones the newest in PTX, which the driver compiles. What an nvcc does not know yet (100 before 12.8) is left
# out.
GENERATIONS = {80: "sm_80", 90: "sm_90a", 100: "sm_100"}


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


@dataclass
class Nvcc:
    """The compiler for GPUs, and what it is to compile for."""

    command: str
    version: str
    targets: list[str]  # as nvcc calls them: sm_80, sm_90a; compute_100 for PTX

    @classmethod
    def find(cls) -> Nvcc:
        if home := os.environ.get("CUDA_HOME"):
            command = shutil.which("nvcc", path=str(Path(home, "bin")))
            if command is None:
                raise CannotBuild(f"there is no bin/nvcc in CUDA_HOME ({home})")
        else:
            command = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
            if command is None:
                raise CannotBuild(
                    "no nvcc found (looked on the PATH and in /usr/local/cuda; CUDA_HOME names another toolkit)"
                )
        version = re.search(r"release (\d+)\.(\d+)", _output(command, "--version"))
        if version is None:
            raise CannotBuild(f"{command} cannot be run")
        release = int(version[1]), int(version[2])
        if release < (12, 0):
            raise CannotBuild(f"nvcc {version[1]}.{version[2]} is too old, 12.0 or newer is needed")
        known = {int(number) for number in re.findall(r"compute_(\d+)", _output(command, "--list-gpu-arch"))}
        return cls(command, f"nvcc {version[1]}.{version[2]}", cls._targets(known))

    @staticmethod
    def _targets(known: set[int]) -> list[str]:
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
        if not asked:
            mine = sorted(known & GENERATIONS.keys())
            return [*(GENERATIONS[arch] for arch in mine), f"compute_{mine[-1]}"]
        targets = []
        for word in re.split(r"[;\s]+", asked):
            version = re.fullmatch(r"(\d+)\.(\d)[a-z]?(\+PTX)?", word)
            if version is None:
                raise CannotBuild(f"TORCH_CUDA_ARCH_LIST: expected versions such as 8.0 or 9.0+PTX, got {word!r}")
            arch = 10 * int(version[1]) + int(version[2])
            if arch >= 80:
                targets += [GENERATIONS.get(arch, f"sm_{arch}"), *([f"compute_{arch}"] if version[3] else [])]
        if not targets:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST ({asked}) names no GPU from 8.0 on")
        return targets

    def flags(self) -> list[str]:
        return [f"-gencode=arch=compute_{target.split('_')[1]},code={target}" for target in self.targets]


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

    def initialize_options(self) -> None:
        super().initialize_options()
        self.record: dict[str, Any] = {}

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CUDA_MODULE:
            return self._build_cuda(ext)
        record: dict[str, Any] = {
            "extension": False,
            "reason": None,
            "isas": [],
            "openmp": False,
            "compiler": "",
            "skipped": {},
        }
        try:
            compiler = Compiler.find()
            record |= {"compiler": compiler.version, "skipped": compiler.skipped}
            self._put(ext, self._compile(compiler))
            record |= {"extension": True, "isas": ["portable", *compiler.isas], "openmp": compiler.openmp}
            for what, why in compiler.skipped.items():
                print(f"ssl_kernels: built without {what}: {why}", file=sys.stderr)
        except CannotBuild as reason:
            record["reason"] = str(reason)
            self._left_out(ext, "C++", reason)
        self._record(ext, record)

    def _build_cuda(self, ext: Extension) -> None:
        record: dict[str, Any] = {"extension": False, "reason": None, "compiler": "", "targets": []}
        try:
            nvcc = Nvcc.find()
        except CannotBuild as reason:
            record["reason"] = str(reason)
            self._put(ext, None)
            print(f"ssl_kernels: built without the CUDA kernels: {reason}", file=sys.stderr)
        else:
            record |= {"compiler": nvcc.version, "targets": nvcc.targets}
            try:
                self._put(ext, self._compile_cuda(Compiler.find(), nvcc))
                record["extension"] = True
            except CannotBuild as reason:
                record["reason"] = str(reason)
                self._left_out(ext, "CUDA", reason)
        self._record(ext, {"cuda": record})

    def _left_out(self, ext: Extension, what: str, reason: CannotBuild) -> None:
        if "build_ext" in self.distribution.commands:
            raise SystemExit(f"ssl_kernels: cannot build the {what} kernels: {reason}") from None
        self._put(ext, None)
        print(f"ssl_kernels: installed WITHOUT the {what} kernels: {reason}", file=sys.stderr)

    def _put(self, ext: Extension, built: Path | None) -> None:
        """What was built where it belongs, and nothing of before."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process may have the old one mapped
        if built is not None:
            shutil.copy(built, target)

    def _record(self, ext: Extension, record: dict[str, Any]) -> None:
        self.record |= record
        path = Path(self.get_ext_fullpath(ext.name)).with_name("_build.json")
        path.write_text(json.dumps(self.record, indent=2) + "\n")

    def _compile(self, compiler: Compiler) -> Path:
        # One folder for every way of building (wheel, editable, in place), so that each continues where another left
        # off: ninja compares commands as well as times.
        ninja = Ninja(ROOT / "build" / f"ninja-{PLATFORM}")
        include = _include()
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

    def _compile_cuda(self, compiler: Compiler, nvcc: Nvcc) -> Path:
        ninja = Ninja(ROOT / "build" / f"ninja-cuda-{PLATFORM}")
        hopper = ["-DSSL_WITH_SM90A"] if "sm_90a" in nvcc.targets else []
        host = ["-ccbin", compiler.command[0]] if os.environ.get("CXX") else []
        flags = [STANDARD, "-O3", *hopper, "-Xcompiler=-fPIC,-fvisibility=hidden"]
        common = [nvcc.command, *host, *nvcc.flags(), *flags, f"-I{ROOT / 'csrc'}", "-MD", "-MF", "$out.d"]
        ninja.rule("nvcc", [*common, "-c", "$in", "-o", "$out"], depfile=True)
        cxx = [*compiler.command, "-MMD", "-MF", "$out.d", *_include(), *compiler.flags, *hopper]
        ninja.rule("cxx", [*cxx, "-c", "$in", "-o", "$out"], depfile=True)
        # the runtime comes along, so that nothing but the driver has to be there, and keeps its names to itself
        link = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"]
        ninja.rule("link", [nvcc.command, *host, *link, "$in", "-o", "$out"])
        objects = [ninja.build("nvcc", f"{source.stem}.o", source) for source in sorted(ROOT.glob("csrc/cuda/*.cu"))]
        objects.append(ninja.build("cxx", "bind.o", ROOT / "csrc/cuda/bind.cpp"))
        module = ninja.build("link", "_cuda.so", *objects)
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


def _include() -> list[str]:
    return [f"-I{ROOT / 'csrc'}", "-isystem", sysconfig.get_path("include"), "-isystem", _pybind11_include()]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""


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


EXTENSIONS = [Extension(name, sources=[]) for name in (MODULE, CUDA_MODULE)]
setup(license="Apache-2.0", ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildExtension})
