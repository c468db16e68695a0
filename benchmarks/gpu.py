"""``make gpu``: everything that needs an NVIDIA GPU, in one command of under nine minutes that needs no network.

Builds in place what can be built, runs every GPU test, measures the ceilings of the chip and then every kernel against
every provider, most telling sizes first, until the time is up. Results are written after every step, so that whatever
ends the run early leaves what was measured until then in ``results/<gpu>-<date>/``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, sanitizer
from benchmarks.ceilings import ceilings, floor_seconds
from benchmarks.harness import ROOT, Samples, environment, interleave, matmul_precision, results_folder, timer
from benchmarks.problems import EAGER, PROBLEMS, Loss, Problem, providers
from benchmarks.questions import state as moving
from benchmarks.questions.speed import Job, inputs
from ssl_kernels import backends
from ssl_kernels.testing import Result, evaluate, peak_extra_bytes, poisoned_memory, relative_error, widened

PHASES = ("forward", "forward+backward")
LARGEST_TRUTH = 32 << 30  # bytes that a check in float64 may take


@dataclass(frozen=True)
class Plan:
    """What to run, and for how long: seconds of the whole and of each stage."""

    device: str = "cuda"
    whole: float = 520.0
    build: float = 120.0
    tests: float = 180.0
    sanitizer: float = 60.0
    ceilings: float = 20.0
    a_job: float = 2.0
    longest_call: float = 1.5  # no problem is begun whose products alone would take longer
    sizes: Mapping[str, tuple[tuple[int, int], ...]] = field(
        default_factory=lambda: {name: problem.gpu for name, problem in PROBLEMS.items()}
    )
    precisions: tuple[tuple[torch.dtype, str], ...] = (
        (torch.bfloat16, "highest"),
        (torch.float32, "high"),
        (torch.float32, "highest"),
        (torch.float16, "highest"),
    )
    compiled: tuple[Job, ...] = (  # compiling takes too long for all
        Job("nt_xent", 4096, 128, torch.bfloat16),
        Job("nt_xent", 16384, 128, torch.bfloat16),
        Job("clip", 4096, 512, torch.bfloat16),
        Job("moco", 1024, 128, torch.bfloat16),
    )
    models: Mapping[str, moving.Shapes] = field(default_factory=lambda: moving.MODELS)
    batches: tuple[int, ...] = moving.BATCHES
    triad: int = 1 << 28  # elements
    long: int = 1 << 45  # entries x width: the two largest of NT-Xent
    matrices: int | None = None  # side of the products that measure the ceilings; None: as the device needs
    test_arguments: tuple[str, ...] = ("-m", "gpu", "tests")

    def jobs(self) -> list[Job]:
        """Every problem, a precision after the other, cheap sizes first; those that last longest come last of all."""
        jobs = [Job(name, n, d, *p) for p in self.precisions for name, sizes in self.sizes.items() for n, d in sizes]

        def order(job: Job) -> tuple[bool, int, int]:
            cost = PROBLEMS[job.loss].entries(job.n) * job.d
            return cost >= self.long, self.precisions.index((job.dtype, job.precision)), cost

        return sorted(jobs, key=order)


@dataclass
class Run:
    """The state of one run; ``write`` puts all of it on disk, and is called after every step."""

    plan: Plan
    folder: Path
    started: float = field(default_factory=time.monotonic)
    about: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    def left(self) -> float:
        return self.plan.whole - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"environment": self.about, **self.stages, "ceilings": self.rates, "not run": self.not_run}
        (self.folder / "run.json").write_text(json.dumps(state, indent=1) + "\n")
        if self.rows:
            report.write_csv(self.folder / "speed.csv", [row | self.about for row in self.rows])
        if self.moved:
            report.write_csv(self.folder / "state.csv", [row | self.about for row in self.moved])
        (self.folder / "README.md").write_text(summary(self))


def main() -> None:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        sys.exit(f"make gpu: needs an NVIDIA GPU, and torch {torch.__version__} ({built}) sees none")
    plan = Plan()
    faulthandler.dump_traceback_later(plan.whole + 15, exit=True)  # a kernel that never ends must not hold the machine
    done = run(plan, results_folder("cuda"))
    print(f"\n{summary(done)}\n{done.folder}")
    sys.exit(0 if done.stages["tests"]["passed"] else 1)


def run(plan: Plan, folder: Path) -> Run:
    """All stages, each within its own time and all of them within ``plan.whole``."""
    state = Run(plan, folder)
    state.stages["build"] = build(plan)
    state.say(f"build: {state.stages['build']}")
    state.about = environment(plan.device)  # after the build: it says which kernels are here
    state.say(f"{state.about['machine']}, torch {state.about['torch']}; kernels: {state.about['kernels']}")
    state.write()
    state.stages["tests"] = run_tests(state)
    state.say(f"tests: {state.stages['tests']['outcome']}")
    state.write()
    state.stages["sanitizer"] = sanitize(state)
    state.say(f"sanitizer: {state.stages['sanitizer']}")
    state.write()
    state.rates = ceilings(plan.device, plan.ceilings, plan.matrices)
    state.say("ceilings: " + ", ".join(f"{name} {rate:.3g}/s" for name, rate in state.rates.items()))
    state.write()
    try:
        state.moved = list(moving.measure(plan.device, plan.models, plan.batches, plan.triad, rounds=5, sample=0.01))
    except Exception as error:
        state.not_run.append(f"averages and queues: {_in_one_line(error)}")
    state.write()
    for job in plan.jobs():
        if reason := _why_not(state, job):
            state.not_run.append(f"{_name(job)}: {reason}")
            continue
        try:
            rows = measure(state, job)
        except Exception as error:  # what was measured so far is kept, and the next size gets its chance
            state.not_run.append(f"{_name(job)}: {_in_one_line(error)}")
            continue
        state.rows += rows
        state.say(f"{_name(job)}: " + ", ".join(f"{r['provider']} {r['median_ms']:.3g} ms" for r in rows if _shown(r)))
        state.write()
    with contextlib.suppress(ImportError):  # a plot is a convenience; matplotlib may not be here
        plot(state)
    state.write()
    return state


# --------------------------------------------------------------------------------------------------------- build, tests
def build(plan: Plan) -> str:
    """Builds the C++ and CUDA kernels in place, the latter for this GPU alone; what cannot be built is said, and on it
    goes."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if plan.device == "cuda":
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    code, output = _within(plan.build, command)
    importlib.invalidate_caches()
    if code is None:
        return f"not built: it took longer than {plan.build:.0f} s"
    return "built in place" if code == 0 else f"not built: {(output.strip().splitlines() or ['no output'])[-1]}"


def run_tests(state: Run) -> dict[str, Any]:
    """Every test that needs the device, on several processes where pytest-xdist is here."""
    if importlib.util.find_spec("pytest") is None:
        return {"passed": False, "outcome": "not run: this Python has no pytest"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *state.plan.test_arguments]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    code, output = _within(state.plan.tests, command)
    (state.folder / "tests.txt").write_text(_without_paths(output)[-20_000:])
    if code is None:
        return {"passed": False, "outcome": f"stopped after {state.plan.tests:.0f} s, see tests.txt"}
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|error|skipped)", line)]
    return {"passed": code == 0, "outcome": lines[-1].strip("= ") if lines else f"pytest ended with {code}"}


def sanitize(state: Run) -> str:
    """Small calls of the CUDA kernels under each tool of compute-sanitizer."""
    if reason := backends.status()["cuda"]:
        return f"not run: no CUDA kernels here, {reason}"
    if sanitizer.program() is None:
        return "not run: compute-sanitizer is not installed"
    outcomes = []
    until = time.monotonic() + state.plan.sanitizer
    for tool in sanitizer.TOOLS:
        code, output = _within(max(1.0, until - time.monotonic()), sanitizer.command(tool))
        (state.folder / f"{tool}.txt").write_text(_without_paths(output)[-20_000:])
        outcomes.append(f"{tool} {'clean' if code == 0 else 'out of time' if code is None else 'FAILED'}")
    return ", ".join(outcomes)


def _within(seconds: float, command: list[str]) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output of a command; nothing that it started outlives it."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # this checkout, whatever else is installed
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def _without_paths(text: str) -> str:
    return text.replace(str(ROOT) + "/", "").replace(str(Path.home()), "~").replace(sys.prefix, "<python>")


# --------------------------------------------------------------------------------------------------------------- timing
def _why_not(state: Run, job: Job) -> str | None:
    if state.left() < 20 + state.plan.a_job:
        return "the time was up"
    seconds = _floor(state.rates, job, PHASES[1])
    if seconds > state.plan.longest_call:
        return f"its products alone take {seconds:.1f} s"
    return None


def measure(state: Run, job: Job) -> list[dict[str, Any]]:
    """A row for every provider, phase and way of launching, all of them interleaved."""
    plan, problem = state.plan, PROBLEMS[job.loss]
    first = inputs(job, 0, plan.device)
    draws = [first, *(inputs(job, seed, plan.device) for seed in range(1, _sets(plan.device, _bytes(first))))]
    truth = _truth(state, job, first)
    facts, calls = {}, {}
    with matmul_precision(job.precision):
        for name, function in providers(job.loss, plan.device, job in plan.compiled).items():
            try:
                facts[name] = _facts(plan.device, name, function, problem, first, truth)
                calls |= dict(_calls(plan.device, name, function, draws, name not in problem.synchronise))
            except Exception as error:  # out of memory, most of the time: the others go on
                state.not_run.append(f"{name} at {_name(job)}: {_in_one_line(error)}")
            _release(plan.device)
        samples = interleave(calls, device=plan.device, rounds=10, sample=0.01, budget=plan.a_job)
    times = {key: _per_call(taken, key[2], len(draws)) for key, taken in samples.items()}
    rows = []
    for (name, phase, launch), taken in times.items():
        floor = _floor(state.rates, job, phase, first)
        eager = times.get((EAGER, phase, launch), times.get((EAGER, phase, "launched")))
        rows.append(
            {"question": "gpu", "loss": job.loss, "n": job.n, "d": job.d, "dtype": str(job.dtype)[6:]}
            | {"precision": job.precision}
            | {"provider": name, "phase": phase, "launch": launch}
            | {"input_sets": len(draws), "rounds": len(taken.seconds)}
            | {f"{key}_ms": 1e3 * taken.percentile(q) for key, q in (("median", 50), ("p20", 20), ("p80", 80))}
            | ({"times_faster": eager.median / taken.median} if eager else {})
            | {"floor_ms": 1e3 * floor, "share_of_floor": floor / taken.median}
            | facts[name]
        )
    return rows


def _in_one_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]


def _sets(device: str, size: int) -> int:
    """So many input sets that together they do not fit into the cache, where that is possible with eight."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2 << 20
    return max(2, min(8, -(-2 * cache // size)))


def _floor(rates: Mapping[str, float], job: Job, phase: str, leaves: Mapping[str, Any] | None = None) -> float:
    """Seconds below which nobody does all of the work: rows are read once, gradients written once."""
    problem, k = PROBLEMS[job.loss], PHASES.index(phase)
    entries = problem.entries(job.n)
    moved = 0
    if leaves is not None:
        moved = _bytes(leaves) + k * 2 * _bytes({name: leaves[name] for name in problem.asking})
    flops, exponentials = 2 * entries * job.d * problem.units[k], entries * problem.exponentials[k]
    return floor_seconds(dict(rates), str(job.dtype)[6:], job.precision, flops, exponentials, moved)


def _bytes(leaves: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in leaves.values() if isinstance(value, torch.Tensor))


def _truth(state: Run, job: Job, leaves: dict[str, Any]) -> Result | None:
    """Value and gradients in float64, where there is time and room for that; None where there is not."""
    problem = PROBLEMS[job.loss]
    entries = problem.entries(job.n)
    if 8 * entries * job.d / state.rates["float64"] > 2.0:
        return None
    if problem.exact is None and 6 * 8 * entries > LARGEST_TRUTH:
        return None
    return evaluate(problem.exact or problem.spec.reference, widened(leaves), problem.asking)


def _facts(
    device: str, name: str, function: Loss, problem: Problem, leaves: dict[str, Any], truth: Result | None
) -> dict[str, Any]:
    """Errors against ``truth``, our own unwritten outputs poisoned, and the peak of the memory."""
    with poisoned_memory() if name.startswith("ssl_kernels") else contextlib.nullcontext():
        got = evaluate(function, leaves, problem.asking)
    errors = {"loss_error": "not checked", "gradient_error": "not checked"}
    if truth is not None:
        errors["loss_error"] = relative_error(got.loss, truth.loss)
        ours, exact = (torch.cat([r[f].double() for f in problem.spec.features if f in r.grads]) for r in (got, truth))
        errors["gradient_error"] = relative_error(ours, exact)
    del got
    step = _step(function, PHASES[1])
    if device == "cuda":
        errors["peak_mib"] = peak_extra_bytes(lambda: step(leaves), device) / 2**20
    return errors


def _step(function: Loss, phase: str) -> Callable[[dict[str, Any]], None]:
    def forward(leaves: dict[str, Any]) -> None:
        with torch.no_grad():
            function(**leaves)

    def both(leaves: dict[str, Any]) -> None:
        for value in leaves.values():
            if isinstance(value, torch.Tensor):
                value.grad = None
        function(**leaves).backward()

    return forward if phase == PHASES[0] else both


def _calls(
    device: str, name: str, function: Loss, draws: list[dict[str, Any]], graph: bool
) -> Iterator[tuple[tuple[str, str, str], Callable[[], Any]]]:
    """``(provider, phase, launch)`` and what to time: launched one by one, and replayed from a CUDA graph."""
    for phase in PHASES:
        step, turns = _step(function, phase), cycle(draws)
        yield (name, phase, "launched"), lambda step=step, turns=turns: step(next(turns))
        if device != "cuda" or not graph or name.startswith("compile"):
            continue
        # where a call lasts long, a graph saves nothing and its memory pool costs a second matrix
        if timer(device)(lambda step=step: step(draws[0]), 1) < 5e-3:
            yield (name, phase, "graph"), captured(step, draws)


def captured(step: Callable[[dict[str, Any]], None], draws: list[dict[str, Any]]) -> Callable[[], None]:
    """A CUDA graph of ``step`` on all of ``draws``, one after the other; calling it replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for leaves in draws:
            step(leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for leaves in draws:
            step(leaves)
    return graph.replay


def _per_call(samples: Samples, launch: str, draws: int) -> Samples:
    return samples if launch == "launched" else Samples(tuple(s / draws for s in samples.seconds))


def _release(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


# -------------------------------------------------------------------------------------------------------------- results
def _name(job: Job) -> str:
    return f"{job.loss} N={job.n} D={job.d} {str(job.dtype)[6:]} {job.precision}"


def _shown(row: Mapping[str, Any]) -> bool:
    return row["phase"] == PHASES[1] and row["launch"] == "launched"


def summary(state: Run) -> str:
    """The folder's README.md: what ran where, the ceilings, and the table."""
    about = state.about
    lines = [f"# {about.get('machine', 'unknown')}, {about.get('date', '')}", ""]
    lines += [f"Written by `make gpu`; every figure was measured in this run. Commit {about.get('commit')}.", ""]
    lines += [f"* {name}: {value}" for name, value in about.items() if value not in ("", None)]
    for name, stage in state.stages.items():
        lines.append(f"* {name}: {stage['outcome'] if isinstance(stage, dict) else stage}")
    if state.rates:
        cells = [["ceiling", "measured"]]
        for name, rate in state.rates.items():
            unit = {"copy": (1e9, "GB/s"), "exp2": (1e9, "G/s")}.get(name, (1e12, "TFLOP/s"))
            cells.append([name, f"{rate / unit[0]:.4g} {unit[1]}"])
        lines += ["", report.align(cells)]
    for phase in PHASES:
        rows = [_with_launch(row) for row in state.rows if row["phase"] == phase]
        if rows:
            lines += ["", f"{phase.capitalize()}: ms (times faster than eager; share of the floor)", ""]
            lines.append(report.table(rows, ("loss", "n", "d", "dtype", "precision"), _cell))
    checked = [row for row in state.rows if row["phase"] == PHASES[1] and row["launch"] == "launched"]
    if checked:
        lines += ["", "Relative error against float64, loss / gradient; peak memory beyond the inputs in MiB", ""]
        lines.append(report.table(checked, ("loss", "n", "d", "dtype", "precision"), _facts_cell))
    if state.moved:
        lines += ["", moving.TITLE, "", report.table(state.moved, moving.COLUMNS, moving.cell)]
    if state.not_run:
        lines += ["", "Not run:", *(f"* {what}" for what in state.not_run)]
    return "\n".join(lines) + "\n"


def _with_launch(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(row) | {"provider": row["provider"] + (", graph" if row["launch"] == "graph" else "")}


def _cell(row: Mapping[str, Any]) -> str:
    faster = f"{row['times_faster']:.1f}x; " if "times_faster" in row else ""
    return f"{row['median_ms']:.3g} ({faster}{100 * row['share_of_floor']:.0f} %)"


def _facts_cell(row: Mapping[str, Any]) -> str:
    errors = [row["loss_error"], row["gradient_error"]]
    text = " / ".join(e if isinstance(e, str) else f"{e:.0e}" for e in dict.fromkeys(errors))
    return text + (f"; {row['peak_mib']:.0f}" if "peak_mib" in row else "")


def plot(state: Run) -> None:
    rows = [row for row in state.rows if _shown(row)]
    if rows:
        report.plot_speed(state.folder / "speed", rows, f"{state.about['machine']}, forward and backward")


if __name__ == "__main__":
    main()
