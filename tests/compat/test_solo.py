"""solo-learn's functions by their formulas, and against the library's own files where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat import solo as ours
from ssl_kernels.testing import evaluate


def draw(n=6, d=4, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(function, expected, inputs):
    got, expected = evaluate(function, inputs), evaluate(expected, inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-12, atol=1e-14, msg=name)


def simclr(z, indexes, temperature=0.1):
    """Of the repository: positives add up inside the logarithm."""
    z = F.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (indexes[:, None] == indexes) & ~itself
    shares = (z @ z.T / temperature).masked_fill(itself, float("-inf")).softmax(1)
    return -(shares * positive).sum(1).log().mean()


def moco(query, key, queue, temperature=0.1):
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def in_batch(a, b, temperature):
    return F.cross_entropy(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature, torch.arange(len(a)))


@pytest.mark.parametrize("indexes", [[0, 1, 2] * 2, [0, 1, 2] * 3, [0, 0, 1, 1, 1, 0], [5] * 4], ids=str)
def test_simclr_by_indexes(indexes):
    indexes = torch.tensor(indexes)
    z = {"z": draw(len(indexes))}
    same(lambda z: ours.simclr_loss_func(z, indexes, 0.3), lambda z: simclr(z, indexes, 0.3), z)
    same(lambda z: ours.simclr_loss_func(z, indexes=indexes), lambda z: simclr(z, indexes), z)


def test_simclr_by_views():
    views = {"z1": draw(), "z2": draw(seed=1)}
    indexes = torch.arange(6).repeat(2)
    same(
        lambda z1, z2: ours.simclr_loss_func(z1, z2, temperature=0.2),
        lambda z1, z2: simclr(torch.cat([z1, z2]), indexes, 0.2),
        views,
    )


def test_a_row_without_a_positive_is_left_out():
    z, indexes = draw(5), torch.tensor([0, 1, 0, 1, 2])
    whole = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.1
    shares = whole.masked_fill(torch.eye(5, dtype=torch.bool), float("-inf")).softmax(1)
    expected = -torch.stack([shares[i, j] for i, j in ((0, 2), (1, 3), (2, 0), (3, 1))]).log().mean()
    torch.testing.assert_close(ours.simclr_loss_func(z, indexes), expected)


def test_moco():
    inputs = {"query": draw(), "key": draw(seed=1), "queue": draw(4, 9, seed=2)}
    same(ours.mocov2plus_loss_func, moco, inputs)  # not normalised, neither here nor there
    same(ours.moco_loss_func, moco, inputs)


def test_in_the_batch():
    views = {"query": draw(), "key": draw(seed=1)}
    same(ours.mocov3_loss_func, lambda query, key: 0.4 * in_batch(query, key, 0.2), views)
    views = {"nn": draw(), "p": draw(seed=1)}
    same(ours.nnclr_loss_func, lambda nn, p: in_batch(nn, p, 0.1), views)


@pytest.mark.parametrize("simplified", [True, False])
def test_byol_and_simsiam_stop_the_gradient(simplified):
    views = {"p": draw(), "z": draw(seed=1)}

    def cosine(p, z):
        return F.cosine_similarity(p, z.detach(), dim=-1).mean()

    same(lambda p, z: ours.byol_loss_func(p, z, simplified), lambda p, z: 2 - 2 * cosine(p, z), views)
    same(lambda p, z: ours.simsiam_loss_func(p, z, simplified), lambda p, z: -cosine(p, z), views)


@pytest.mark.parametrize("name", ["simclr", "moco", "mocov2plus", "mocov3", "nnclr", "byol", "simsiam"])
def test_as_solo_learn_itself(name):
    spec = importlib.util.find_spec("solo")
    if spec is None:
        pytest.skip("solo-learn is not installed")
    path = Path(spec.submodule_search_locations[0]) / "losses" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"no {name} in this version of solo-learn")
    spec = importlib.util.spec_from_file_location(f"solo_{name}", path)  # the package itself wants much more
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = {"a": draw(), "b": draw(seed=1)} | (
        {"queue": draw(4, 9, seed=2)} if name.startswith("mocov2") or name == "moco" else {}
    )
    theirs, function = getattr(module, f"{name}_loss_func"), getattr(ours, f"{name}_loss_func")
    same(lambda **t: function(*t.values()), lambda **t: theirs(*t.values()), inputs)
