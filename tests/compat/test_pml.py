"""pytorch-metric-learning: our subclasses inside its wrappers, against its own classes."""

from __future__ import annotations

import pickle

import pytest
import torch

from ssl_kernels.testing import evaluate

theirs = pytest.importorskip("pytorch_metric_learning.losses")
from pytorch_metric_learning import distances, miners, reducers  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

from ssl_kernels.compat import pml as ours  # noqa: E402

LOSSES = ["NTXentLoss", "SupConLoss"]
LABELS = {
    "pairs": [0, 1, 2, 3, 0, 1, 2, 3],
    "classes": [0, 1, 0, 1, 2, 0, 2, 2],
    "some alone": [0, 1, 0, 3, 4, 5, 6, 6],
    "all alone": list(range(8)),
    "one class": [1] * 8,
}


def draw(n=8, d=5, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(function, expected, inputs):
    got, expected = evaluate(function, inputs), evaluate(expected, inputs)
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.5}], ids=str)
def test_labels(name, labels, arguments):
    labels = torch.tensor(LABELS[labels])
    loss, peer = (getattr(module, name)(**arguments) for module in (ours, theirs))
    same(
        lambda embeddings: loss(embeddings, labels), lambda embeddings: peer(embeddings, labels), {"embeddings": draw()}
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_views(name, symmetric):
    loss = ours.SelfSupervisedLoss(getattr(ours, name)(0.2), symmetric=symmetric)
    peer = theirs.SelfSupervisedLoss(getattr(theirs, name)(0.2), symmetric=symmetric)
    same(loss, peer, {"embeddings": draw(), "ref_emb": draw(seed=1)})
    same(
        theirs.SelfSupervisedLoss(getattr(ours, name)(0.2), symmetric=symmetric),
        peer,
        {"embeddings": draw(), "ref_emb": draw(seed=1)},
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "more",
    [
        {"distance": lambda: distances.LpDistance()},
        {"distance": lambda: distances.DotProductSimilarity()},
        {"reducer": lambda: reducers.ThresholdReducer(low=0.5)},
        {"reducer": lambda: reducers.SumReducer()},
        {
            "embedding_regularizer": lambda: __import__(
                "pytorch_metric_learning.regularizers"
            ).regularizers.LpRegularizer()
        },
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_not_usual_is_the_librarys_own(name, more):
    made = {k: v() for k, v in more.items()}
    loss, peer = (getattr(module, name)(**made) for module in (ours, theirs))
    labels = torch.tensor(LABELS["classes"])
    same(
        lambda embeddings: loss(embeddings, labels), lambda embeddings: peer(embeddings, labels), {"embeddings": draw()}
    )


@pytest.mark.parametrize("name", LOSSES)
def test_miners_and_memories(name):
    labels = torch.tensor(LABELS["classes"])
    loss, peer = (getattr(module, name)() for module in (ours, theirs))
    mined = miners.MultiSimilarityMiner()(draw(), labels)
    same(
        lambda embeddings: loss(embeddings, labels, mined),
        lambda embeddings: peer(embeddings, labels, mined),
        {"embeddings": draw()},
    )
    memories = [theirs.CrossBatchMemory(each, 5, 16) for each in (loss, peer)]
    for seed in range(3):
        inputs = {"embeddings": draw(seed=seed)}
        same(*(lambda embeddings, m=m: m(embeddings, labels) for m in memories), inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_one_of_the_library(name):
    loss = getattr(ours, name)(0.3)
    assert type(loss).__name__ == name and isinstance(loss, getattr(theirs, name))
    assert loss.temperature == 0.3 and isinstance(loss.distance, distances.CosineSimilarity)
    DistributedLossWrapper(loss)
    theirs.MultipleLosses([loss])
    labels = torch.tensor(LABELS["classes"])
    torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(draw(), labels), loss(draw(), labels))


def test_labels_are_required():
    with pytest.raises(ValueError):
        ours.NTXentLoss()(draw())


def test_no_other_name_is_there():
    with pytest.raises(AttributeError, match="has no attribute 'TripletLoss'"):
        ours.TripletLoss  # noqa: B018
