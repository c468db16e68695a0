"""What part of a training step of SimCLR is the loss?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from benchmarks.harness import interleave, ratios
from benchmarks.problems import EAGER, providers
from methods.encoders import build_encoder
from methods.heads import SimCLRProjectionHead

TITLE = "Share of the loss, forward and backward, in a SimCLR step (small encoder, 32 x 32 images)"
COLUMNS = ("loss", "n", "d", "dtype")

BATCH = 512
TEMPERATURE = 0.1


def ask(losses: Collection[str] = ("nt_xent",), quick: bool = False) -> Iterator[dict[str, Any]]:
    if "nt_xent" not in losses:
        return
    batch = 64 if quick else BATCH
    torch.manual_seed(0)
    encoder = build_encoder("small", 32, torch.full((3,), 0.5), torch.full((3,), 0.25))
    model = torch.nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, encoder.dim, 128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.rand(2 * batch, 3, 32, 32)
    z = [t.requires_grad_() for t in model(images).detach().chunk(2)]
    candidates = providers("nt_xent", compiled=False)

    def step(loss):
        optimizer.zero_grad()
        loss(*model(images).chunk(2), TEMPERATURE).backward()
        optimizer.step()

    def alone(loss):
        for t in z:
            t.grad = None
        loss(*z, TEMPERATURE).backward()

    calls = {f"step, {name}": lambda loss=loss: step(loss) for name, loss in candidates.items() if _is_shown(name)}
    calls |= {f"loss, {name}": lambda loss=loss: alone(loss) for name, loss in candidates.items() if _is_shown(name)}
    samples = interleave(calls, rounds=3 if quick else 9)
    for name in filter(_is_shown, candidates):
        whole, part = samples[f"step, {name}"], samples[f"loss, {name}"]
        share = ratios(part, whole)
        yield {
            "question": "step", "loss": "nt_xent", "n": batch, "d": 128, "dtype": "float32", "provider": name,
            "step_ms": 1e3 * whole.median, "loss_ms": 1e3 * part.median,
            "share": share.median, "share_p20": share.percentile(20), "share_p80": share.percentile(80),
        }  # fmt: skip


def _is_shown(name: str) -> bool:
    return name == EAGER or name.startswith("ssl_kernels")


def cell(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.1f} % of {row['step_ms']:.0f} ms"
