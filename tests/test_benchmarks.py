"""The benchmarks measure what they say, and run from end to end at sizes that cost nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import ceilings, gpu, harness, report, sanitizer
from benchmarks.problems import EAGER, PROBLEMS, providers
from benchmarks.questions import QUESTIONS, accuracy, memory, speed, state, step
from benchmarks.questions.speed import Job
from ssl_kernels import backends, nt_xent_loss, nt_xent_reference
from ssl_kernels.losses import LOSSES
from ssl_kernels.testing import Case, evaluate, relative_error


# -------------------------------------------------------------------------------------------------------------- harness
def test_percentiles_and_ratios():
    samples = harness.Samples((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (samples.median, samples.percentile(20), samples.percentile(80), samples.percentile(100)) == (3, 1.8, 4.2, 5)
    assert harness.percentile([7.0], 20) == 7
    assert harness.ratios(harness.Samples((4.0, 9.0)), harness.Samples((2.0, 3.0))).seconds == (2, 3)


def test_candidates_take_turns_and_sleep_is_measured():
    order = []

    def nap(name, seconds):
        order.append(name)
        time.sleep(seconds)

    calls = {"a": partial(nap, "a", 0.002), "b": partial(nap, "b", 0.02)}
    samples = harness.interleave(calls, rounds=3, sample=0.0)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3  # a warm-up and a trial of each, then in turns
    assert samples["a"].median >= 0.002 and samples["b"].median >= 0.02
    assert harness.ratios(samples["b"], samples["a"]).median > 1


def test_the_budget_ends_the_rounds_after_three():
    samples = harness.interleave({"a": partial(time.sleep, 0.01)}, rounds=100, sample=0.0, budget=0.02)
    assert 3 <= len(samples["a"].seconds) < 10
    samples = harness.interleave({"a": partial(time.sleep, 0.05)}, rounds=100, sample=0.0, budget=0.01)
    assert len(samples["a"].seconds) == 1


def test_every_row_knows_where_it_comes_from():
    about = harness.environment()
    assert {"date", "commit", "machine", "features", "threads", "heap", "omp", "torch"} <= about.keys()
    assert about["heap"] == "default" and about["threads"] == torch.get_num_threads()
    folder = harness.results_folder()
    assert folder.parent == harness.RESULTS and folder.name.endswith(about["date"]) and " " not in folder.name


# ------------------------------------------------------------------------------------------------------------ providers
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n", [2, 33, 130])
def test_every_rival_computes_the_same(name, n):
    problem = PROBLEMS[name]
    case = Case(problem.loss, "reference", "cpu", torch.float64, n, 16, 0.3 if problem.spec.temperatures is None else 1)
    inputs = case.inputs(learned=False)
    expected = evaluate(problem.spec.reference, inputs, problem.asking)
    for rival, function in problem.rivals.items():
        if "float32" not in rival:
            got = evaluate(function, inputs, problem.asking)
            torch.testing.assert_close(got.loss, expected.loss)
            for feature in problem.spec.features:
                if feature in expected.grads:
                    torch.testing.assert_close(got[feature], expected[feature])


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_what_the_loss_takes(name):
    problem = PROBLEMS[name]
    inputs = problem.draw(4, 8, torch.float32, 0)
    asking = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad]
    assert sorted(asking) == sorted(problem.asking)
    evaluate(problem.spec.reference, inputs, problem.asking)
    assert {problem.loss for problem in PROBLEMS.values()} >= {loss.SPEC.name for loss in LOSSES}


@pytest.mark.parametrize("name", PROBLEMS)
def test_ours_and_eager_are_among_the_providers(name):
    table = providers(name)
    assert EAGER in table and set(PROBLEMS[name].compiled) <= set(PROBLEMS[name].rivals)
    assert ("ssl_kernels cpu" in table) == (backends.status()["cpu"] is None)
    assert not any("reference" in name for name in table)
    assert sum(name.startswith("compile(") for name in table) == len(PROBLEMS[name].compiled)
    assert not any(name.startswith("compile(") for name in providers(name, compiled=False))


# ------------------------------------------------------------------------------------------------------------ questions
@pytest.mark.parametrize("loss", PROBLEMS)
def test_speed_rows(monkeypatch, loss):
    monkeypatch.setitem(PROBLEMS, loss, replace(PROBLEMS[loss], quick=((8, 4),)))
    rows = list(speed.ask([loss], quick=True))
    names = list(providers(loss, compiled=False))
    assert len(rows) == len(names) * len(speed.PRECISIONS)
    for row in rows:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["provider"] != EAGER or row["median_times_faster"] == 1
    table = report.table(rows, speed.COLUMNS, speed.cell)
    assert table.count("\n") == 1 + len(speed.PRECISIONS) and all(name in table for name in names)


def test_memory_is_asked_in_a_fresh_process():
    job = Job("nt_xent", 512, 16)
    peak = harness.in_fresh_process(memory.peak_of, EAGER, job, 1)
    assert peak > 1024 * 1024 * 4  # the matrix at least once


def test_accuracy_rows(monkeypatch):
    monkeypatch.setattr(accuracy, "TEMPERATURES", (0.1,))
    rows = list(accuracy.ask(["nt_xent", "moco"], quick=True))
    assert {row["loss"] for row in rows} == {"nt_xent", "moco"}
    assert {row["regime"] for row in rows} == {"as drawn", "trained"}
    assert all(row["gradient_error"] < 1e-5 for row in rows if row["provider"] == EAGER and row["dtype"] == "float32")


def test_step_rows():
    rows = list(step.ask(quick=True))
    assert EAGER in {row["provider"] for row in rows}
    assert all(0 < row["share"] < 1 and row["loss_ms"] < row["step_ms"] for row in rows)


def test_state_rows():
    rows = list(state.ask(quick=True))
    assert {row["what"] for row in rows} == {"EMA", "enqueue"}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["times_faster"] > 0 and row["share_of_triad"] > 0 for row in rows)


def test_the_models_have_the_parameters_that_they_are_known_for():
    assert (sum(map(math.prod, state.resnet50())), len(state.resnet50())) == (25_557_032, 161)
    assert (sum(map(math.prod, state.vit_b())), len(state.vit_b())) == (86_567_656, 152)


def test_every_question_can_be_asked():
    for module in QUESTIONS.values():
        assert module.TITLE and module.COLUMNS and callable(module.ask) and callable(module.cell)


# --------------------------------------------------------------------------------------------------------------- report
ROWS = [
    {"loss": "nt_xent", "n": n, "d": 128, "dtype": "float32", "precision": "highest"}
    | {"heap": heap, "provider": provider}
    | {"median_ms": ms, "median_times_faster": 20.0 / ms, "threads": 2, "machine": "a machine", "features": "avx512f"}
    | {"torch": "2.13", "commit": "abc", "date": "2026-01-01"}
    for heap in ("default", "retained")
    for n in (256, 4096)
    for provider, ms in (("ssl_kernels cpu", 2.0), ("eager", 20.0))
]


def test_rows_survive_the_csv(tmp_path):
    report.write_csv(tmp_path / "new" / "speed.csv", [*ROWS, {"note": "one more column"}])
    back = report.read_csv(tmp_path / "new" / "speed.csv")
    assert back[0] == ROWS[0] | {"note": ""} and back[-1]["note"] == "one more column"


def test_the_readme_gets_what_the_csv_files_hold_and_nothing_else(tmp_path):
    other = [
        ROWS[2] | {"precision": "high", "median_times_faster": 13.37},
        ROWS[2] | {"dtype": "bfloat16", "median_times_faster": 14.41},
        *(
            ROWS[3] | {"provider": f"compile({name})", "median_times_faster": t}
            for name, t in (("a", 4.0), ("b", 12.5))
        ),
    ]
    report.write_csv(tmp_path / "speed.csv", [*ROWS[:4], *other])
    report.write_csv(tmp_path / "speed-retained.csv", ROWS[4:])
    report.write_csv(tmp_path / "memory.csv", [ROWS[2] | {"peak_mib": 12.3}])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # again: the same
        report.write_readme(tmp_path, readme)
        text = readme.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n| loss ") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "retained heap" in text and "| 4096 " in text and "| 12 " in text
    assert "| 256 " not in text  # the largest size speaks for a loss
    line = next(line for line in text.splitlines() if line.startswith("| nt_xent"))
    expected = ["nt_xent", "4096", "128", "20", "2", "10.0", "10.0", "13.4", "14.4", "0.80", "", "12"]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == expected
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="expected the markers"):
        report.write_readme(tmp_path, readme)
    with pytest.raises(FileNotFoundError, match=r"expected speed\.csv, found none"):
        report.write_readme(tmp_path / "nothing", readme)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    other = [row | {"loss": "sup_con, 10 classes"} for row in ROWS]
    paths = report.plot_speed(tmp_path / "speed", [*ROWS, *other], "a machine")
    assert [path.name for path in paths] == ["speed-nt_xent.png", "speed-sup_con-10-classes.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)


@pytest.mark.parametrize("heap", ["default", "retained"])
def test_the_command_prints_and_writes(tmp_path, heap):
    command = [sys.executable, "-m", "benchmarks", "--threads", "1", "--out", str(tmp_path), "accuracy", "--quick"]
    command += ["--loss", "nt_xent"]
    command += ["--retained-heap"] if heap == "retained" else []
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert "Relative error against float64" in done.stdout and f"heap         {heap}" in done.stdout
    assert not list(tmp_path.iterdir())  # quick looks are not results


def test_an_unknown_question_is_refused_in_one_line():
    command = [sys.executable, "-m", "benchmarks", "spede"]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("question: expected speed, memory, accuracy, step, state, got spede")


# ------------------------------------------------------------------------------------------------------------------ GPU
TINY = gpu.Plan(
    device="cpu", whole=120, tests=60, ceilings=0.2, a_job=0.2, compiled=(), matrices=64,
    sizes={"nt_xent": ((8, 4), (32, 4), (8, 8)), "clip": ((32, 8),)},
    models={"small": [(8, 8)]}, batches=(4,), triad=256,
    precisions=((torch.bfloat16, "highest"), (torch.float32, "high")),
)  # fmt: skip


@pytest.fixture
def no_build(monkeypatch):
    monkeypatch.setattr(gpu, "build", lambda plan: "not built: this is a test")


def test_the_whole_run_on_a_cpu(tmp_path, no_build):
    test = tmp_path / "test_nothing.py"
    test.write_text("def test_nothing():\n    pass\n")
    state = gpu.run(replace(TINY, test_arguments=(str(test),)), tmp_path)
    assert state.stages["tests"]["passed"] and "1 passed" in state.stages["tests"]["outcome"], state.stages
    assert len({(row["loss"], row["n"], row["d"], row["dtype"]) for row in state.rows}) == 8
    assert all(0 < row["share_of_floor"] for row in state.rows)
    worst = {"float32": 1e-5, "bfloat16": 0.1}
    assert all(row["gradient_error"] < worst[row["dtype"]] for row in state.rows)
    text = (tmp_path / "README.md").read_text()
    assert "Forward+backward: ms" in text and "bfloat16" in text and "| clip " in text
    assert "EMA" in text and "enqueue" in text and (tmp_path / "state.csv").exists()
    assert "sanitizer: not run" in text  # no GPU, no kernels to watch
    assert (tmp_path / "run.json").exists() and len(report.read_csv(tmp_path / "speed.csv")) == len(state.rows)


def test_what_was_measured_is_kept_when_something_fails(tmp_path, no_build, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("out of luck\nand more lines")

    monkeypatch.setattr(gpu, "run_tests", lambda state: {"passed": False, "outcome": "1 failed"})
    monkeypatch.setattr(gpu, "providers", lambda *a, **k: {EAGER: nt_xent_reference, "broken": broken})
    state = gpu.run(TINY, tmp_path)
    assert {row["provider"] for row in state.rows} == {EAGER}
    assert "broken at nt_xent N=8 D=4 bfloat16 highest: RuntimeError: out of luck" in state.not_run
    monkeypatch.setattr(gpu, "measure", broken)
    state = gpu.run(TINY, tmp_path)
    assert not state.rows and len(state.not_run) == 8


def test_every_tool_of_the_sanitizer_says_what_it_found(tmp_path, monkeypatch):
    watched = tmp_path / "compute-sanitizer"
    watched.write_text('#!/bin/sh\necho "watched by $2"\n[ "$2" != racecheck ] || exit 99\n')
    watched.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu.backends, "status", lambda: {"cuda": None})
    outcome = gpu.sanitize(gpu.Run(TINY, tmp_path))
    assert outcome == "memcheck clean, racecheck FAILED, initcheck clean, synccheck clean"
    assert (tmp_path / "initcheck.txt").read_text() == "watched by initcheck\n"


def test_what_the_sanitizer_watches_runs():
    for _, call in sanitizer.calls("cpu", "cpu"):
        call()


def test_the_deadline_is_kept_and_said(tmp_path, no_build, monkeypatch):
    monkeypatch.setattr(gpu, "run_tests", lambda state: {"passed": True, "outcome": "1 passed"})
    state = gpu.run(replace(TINY, whole=1.0), tmp_path)
    assert not state.rows and all("the time was up" in what for what in state.not_run)
    state = gpu.run(replace(TINY, longest_call=0.0), tmp_path)
    assert not state.rows and all("its products alone take" in what for what in state.not_run)


def test_a_stage_that_hangs_is_ended_with_all_it_started():
    start = time.monotonic()
    code, output = gpu._within(3, ["bash", "-c", "echo begun; sleep 100 & sleep 100"])
    assert code is None and output == "begun\n" and time.monotonic() - start < 30


def test_the_plan_covers_every_size_once_and_the_cheap_ones_first():
    plan = gpu.Plan()
    jobs = plan.jobs()
    assert len(set(jobs)) == len(jobs) and {job.loss for job in jobs} == set(PROBLEMS)
    assert {job.n for job in jobs if job.loss == "nt_xent"} == {4096, 16384, 32768, 131072}
    assert {(job.n, job.d) for job in jobs if job.loss == "moco"} == {(n, 128) for n in (256, 512, 1024, 2048, 4096)}
    assert {job.d for job in jobs if job.loss == "clip"} == {512, 768, 1024} and set(plan.compiled) <= set(jobs)
    costs = [PROBLEMS[job.loss].entries(job.n) * job.d for job in jobs]
    first = sum(job.dtype == torch.bfloat16 and cost < plan.long for job, cost in zip(jobs, costs, strict=True))
    assert {job.dtype for job in jobs[:first]} == {torch.bfloat16} and costs[:first] == sorted(costs[:first])
    assert {(job.loss, job.n, job.d) for job in jobs[-8:]} == {("nt_xent", 131072, 512), ("nt_xent", 131072, 1024)}
    assert plan.build + plan.tests + plan.ceilings + 60 < plan.whole < 540


def test_the_floor_is_the_slowest_unit():
    rates = {"bfloat16": 1e12, "float32 high": 5e11, "exp2": 1e12, "copy": 1e12}
    assert ceilings.floor_seconds(rates, "bfloat16", "highest", 3e9, 1e9, 1e9) == 3e-3
    assert ceilings.floor_seconds(rates, "float32", "high", 3e9, 1e9, 1e9) == 6e-3
    assert ceilings.floor_seconds(rates, "bfloat16", "highest", 3e9, 4e9) == 4e-3
    assert ceilings.floor_seconds(rates, "bfloat16", "highest", 3e9, moved=5e9) == 5e-3
    job = Job("clip", 1024, 64, torch.bfloat16)
    assert gpu._floor(rates, job, "forward") == 2 * 1024**2 * 64 / 1e12
    assert gpu._floor(rates, job, "forward+backward") == 4 * 2 * 1024**2 * 64 / 1e12
    inputs = speed.inputs(Job("moco", 2, 2, torch.bfloat16), 0)
    assert gpu._bytes(inputs) == (2 * 2 * 2 + 65536 * 2) * 2
    floor = gpu._floor(rates | {"copy": 1e3}, Job("moco", 2, 2, torch.bfloat16), "forward+backward", inputs)
    assert floor == (gpu._bytes(inputs) + 2 * 8) / 1e3


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"],
        cwd=harness.ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("make gpu: needs an NVIDIA GPU") and done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------------- against growing slow
@pytest.mark.parametrize("name", [name for name in providers("nt_xent", compiled=False) if name != "eager, in chunks"])
def test_small_batch(benchmark, name):
    """Timed by pytest-benchmark; ``--benchmark-compare`` shows what changed since an earlier run."""
    job = Job("nt_xent", 64, 32)
    call = speed.training_call(providers("nt_xent", compiled=False)[name], [speed.inputs(job, 0)])
    benchmark.pedantic(call, rounds=5, iterations=2, warmup_rounds=1)


def test_the_error_that_the_benchmarks_report_is_the_one_of_the_tests():
    inputs = Case("nt_xent", "reference", "cpu", torch.float32, 16, 8, 0.1).inputs()
    got = evaluate(partial(nt_xent_loss, backend="reference"), inputs)
    assert relative_error(got["z1"], 2 * got["z1"]) == pytest.approx(0.5)
