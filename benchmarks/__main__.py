"""``python -m benchmarks [question ...]``: measures on this machine, prints tables, leaves CSV and plots.

Threads that wait for work spin for a while by default and take time from whatever runs next to them; on a shared
machine ``OMP_WAIT_POLICY=passive`` makes runs more alike. Whatever is set stands in every row.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.harness import environment, heap_is_retained, results_folder, retain_heap
from benchmarks.problems import PROBLEMS
from benchmarks.questions import QUESTIONS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="question", help=f"{', '.join(QUESTIONS)}; default: all")
    parser.add_argument("--loss", action="append", choices=PROBLEMS, help="again for more; default: all")
    parser.add_argument("--at", type=int, metavar="N", help="only sizes of N samples")
    parser.add_argument("--quick", action="store_true", help="small sizes only, about two minutes; writes no results")
    parser.add_argument("--retained-heap", action="store_true", help="keep freed memory in the process (see README)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<machine>-<date>")
    parser.add_argument("--readme", action="store_true", help="write README.md's table from the results")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"question: expected {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    folder = options.out or results_folder()
    if options.readme:
        report.write_readme(folder)
        return
    if options.at:
        for name, problem in PROBLEMS.items():
            PROBLEMS[name] = replace(problem, sizes=tuple(size for size in problem.sizes if size[0] == options.at))
    if options.retained_heap:
        retain_heap()
    torch.set_num_threads(options.threads)
    about = environment()
    print("\n".join(f"{name:12} {value}" for name, value in about.items()))
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        rows = []
        for row in question.ask(options.loss or PROBLEMS, options.quick):
            rows.append(row | about)
            if sys.stderr.isatty():
                print(f"\r{name}: {len(rows)} measurements", end="\r", file=sys.stderr, flush=True)
        print(f"\n{question.TITLE}\n\n{report.table(rows, question.COLUMNS, question.cell)}", flush=True)
        if not options.quick:
            file = folder / (name + ("-retained" if heap_is_retained() else "") + ".csv")
            report.write_csv(file, rows)
            if name == "speed":
                report.plot_speed(file.with_suffix(""), rows, f"{about['machine']}, {about['threads']} threads")
            print(f"\n{file}")


if __name__ == "__main__":
    main()
