"""What is measured, one file a loss: sizes, inputs, rivals. A loss without a file meets its reference."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.problems import clip, cosine, dcl, dino, info_nce, nt_xent, siglip, spread, sup_con, t_simcne
from benchmarks.problems.problem import EAGER, Loss, Problem
from ssl_kernels import backends
from ssl_kernels.losses import LOSSES
from ssl_kernels.testing import backends_for

__all__ = ["EAGER", "PROBLEMS", "Loss", "Problem", "providers"]


FILES = (nt_xent, clip, siglip, info_nce, dcl, sup_con, cosine, t_simcne, spread, dino)


def _all() -> dict[str, Problem]:
    written = {name: problem for file in FILES for name, problem in file.PROBLEMS.items()}
    theirs = {problem.loss for problem in written.values()}
    others = (loss.SPEC for loss in LOSSES if loss.SPEC.name not in theirs)
    return written | {spec.name: Problem(spec.name, {EAGER: spec.reference}) for spec in others}


PROBLEMS = _all()


def providers(name: str, device: str = "cpu", compiled: bool = True) -> dict[str, Loss]:
    """Every way to solve a problem here, called with the same inputs: ours on each backend, then its rivals."""
    problem = PROBLEMS[name]
    here = [b for b in backends_for(device) if b != "reference" and backends.status()[b] is None]
    table: dict[str, Loss] = {f"ssl_kernels {b}": partial(problem.spec.fused, backend=b) for b in here}
    table |= problem.rivals
    if compiled:
        table |= {f"compile({rival})": torch.compile(problem.rivals[rival]) for rival in problem.compiled}
    return table
