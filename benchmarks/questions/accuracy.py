"""How far is each from float64, as drawn and as a trained model has it?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.harness import matmul_precision
from benchmarks.problems import PROBLEMS, providers
from ssl_kernels.testing import Case, evaluate, relative_error, temperatures, widened

TITLE = "Relative error against float64: loss / gradient"
COLUMNS = ("loss", "regime", "temperature", "dtype", "precision")

TEMPERATURES = (0.5, 0.1, 0.05, 0.02, 0.01)


def ask(losses: Collection[str] = PROBLEMS, quick: bool = False) -> Iterator[dict[str, Any]]:
    n, d = (128, 64) if quick else (1024, 128)
    for loss in losses:
        spec, candidates = PROBLEMS[loss].spec, providers(loss, compiled=False)
        for trained in (False, True):
            for temperature in [t for t in TEMPERATURES if t in temperatures(spec)] or temperatures(spec):
                for dtype, precision in (("float32", "highest"), ("float32", "high"), ("bfloat16", "highest")):
                    case = Case(spec.name, "", "cpu", getattr(torch, dtype), n, d, temperature, trained)
                    drawn = case.inputs(learned=False)
                    # the fused reference in float64 keeps the positive out of the sums: exact where the loss is tiny
                    truth = evaluate(partial(spec.fused, backend="reference"), widened(drawn), spec.features)
                    for name, function in candidates.items():
                        with matmul_precision(precision):
                            got = evaluate(function, drawn, spec.features)
                        yield {
                            "question": "accuracy", "loss": loss, "regime": "trained" if trained else "as drawn",
                            "temperature": temperature, "dtype": dtype, "precision": precision, "n": n, "d": d,
                            "provider": name, "true_loss": truth.loss.item(),
                            "loss_error": relative_error(got.loss, truth.loss),
                            "gradient_error": relative_error(
                                torch.cat([got[name].double() for name in spec.features]),
                                torch.cat([truth[name] for name in spec.features]),
                            ),
                        }  # fmt: skip


def cell(row: dict[str, Any]) -> str:
    return f"{row['loss_error']:.0e} / {row['gradient_error']:.0e}"
