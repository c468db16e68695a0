"""What every method has to do, whichever it is: an entry in METHODS is tested by being there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import nn

from methods.__main__ import METHODS
from methods.batch import Batch
from methods.train import Run

every_method = pytest.mark.parametrize("name", sorted(METHODS))


def loss_of(method: nn.Module, batch: Batch) -> torch.Tensor:
    """Of a copy: a queue takes up the keys of every batch that it meets."""
    torch.manual_seed(1)
    method = copy.deepcopy(method)
    return method.loss(method(batch), batch)


def rows_of(x: object, rows: list[int]) -> object:
    if x is None:
        return None
    if isinstance(x, torch.Tensor):
        return x[rows].double() if x.is_floating_point() else x[rows]
    return [rows_of(view, rows) for view in x] if isinstance(x[0], torch.Tensor) else [x[k] for k in rows]


def run_of(name: str, settings_of: Callable, **changes: object) -> Run:
    return Run(METHODS[name], METHODS[name].Config(**settings_of(name, **changes)))


@every_method
def test_a_step_lowers_the_loss(name: str, settings_of: Callable):
    run = run_of(name, settings_of)
    batch = run._batch(0, 0, torch.arange(32))
    after = copy.deepcopy(run.method)
    before = loss_of(after, batch)
    torch.manual_seed(1)
    run.method.loss(run.method(batch), batch).backward()
    norm = torch.stack([p.grad.norm() for p in run.method.parameters() if p.grad is not None]).norm()
    assert norm > 0
    with torch.no_grad():
        for moved, p in zip(after.parameters(), run.method.parameters(), strict=True):
            if p.grad is not None:
                moved -= 0.01 * p.grad / norm
    assert loss_of(after, batch) < before


@every_method
def test_everything_that_is_trained_has_a_gradient_and_nothing_else(name: str, settings_of: Callable):
    run = run_of(name, settings_of)
    batch = run._batch(0, 0, torch.arange(32))
    run.method.loss(run.method(batch), batch).backward()
    for parameter, p in run.method.named_parameters():
        later = (name, parameter.partition(".")[0]) == ("tsimcne", "flat")  # in the second stage
        assert (p.grad is not None) == (p.requires_grad and not later), parameter


@every_method
def test_its_state_is_all_of_it(name: str, settings_of: Callable):
    run, other = run_of(name, settings_of), run_of(name, settings_of, seed=1)
    for step, rows in enumerate(run._order(0)):
        run._step(step, rows)
    other.method.load_state_dict(run.method.state_dict())
    batch = run._batch(9, 0, torch.arange(32))
    assert torch.equal(loss_of(run.method, batch), loss_of(other.method, batch))


@every_method
def test_the_gradient_cache_has_the_gradient_of_the_whole_batch(name: str, settings_of: Callable):
    """Also of parameters of the loss itself; with batch norms that do not depend on how the batch is cut."""
    found = []
    for parts in (1, 4):
        run = run_of(name, settings_of, accumulate=parts, grad_cache=parts > 1, optimizer="sgd", momentum=0.0)
        run.method.double()
        run.method.eval()
        whole = run._batch(0, 0, torch.arange(32))

        def cut(step: int, number: int, rows: torch.Tensor, whole: Batch = whole) -> Batch:
            return Batch(**{f.name: rows_of(getattr(whole, f.name), rows.tolist()) for f in fields(Batch)})

        run._batch = cut
        queues = {k: v for k, v in run.method.state_dict().items() if "queue" in k}
        loss = run._step(0, torch.arange(32))
        grads = {k: p.grad for k, p in run.method.named_parameters() if p.grad is not None}
        found.append({"loss": loss, **grads, **queues})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
