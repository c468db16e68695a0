"""sentence-transformers: our subclass against its own class, over given embeddings."""

from __future__ import annotations

import pickle

import pytest
import torch

from ssl_kernels.testing import evaluate

theirs = pytest.importorskip("sentence_transformers.losses")

from ssl_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss  # noqa: E402

BOTH = ("query_to_doc", "doc_to_query")
GTE = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def columns(count):
    draw = torch.Generator().manual_seed(0)
    return {f"column{k}": torch.randn(6, 5, dtype=torch.float64, generator=draw) for k in range(count)}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 5.0},
        {"directions": BOTH, "partition_mode": "per_direction"},
        {"directions": BOTH},
        {"directions": GTE},
        {"hardness_mode": "all_negatives", "hardness_strength": 2.0},
        {"similarity_fct": lambda a, b: a @ b.T / 20},
    ],
    ids=lambda arguments: "-".join(arguments) or "default",
)
def test_the_same_as_theirs(count, arguments):
    model = torch.nn.Identity()
    ours, peer = (
        loss(model, **arguments) for loss in (MultipleNegativesRankingLoss, theirs.MultipleNegativesRankingLoss)
    )

    def run(loss):
        return lambda **leaves: loss.compute_loss_from_embeddings(list(leaves.values()), None)

    got, expected = evaluate(run(ours), columns(count)), evaluate(run(peer), columns(count))
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_it_is_one_of_the_library():
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=10.0)
    peer = theirs.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=10.0)
    assert isinstance(loss, theirs.MultipleNegativesRankingLoss) and type(loss).__name__ == type(peer).__name__
    assert loss.get_config_dict() == peer.get_config_dict() and loss.citation == peer.citation
    assert loss.temperature == pytest.approx(0.1)
    assert pickle.loads(pickle.dumps(loss)).scale == 10.0
    with pytest.raises(ValueError, match="Expected at least 2 embeddings, got 1"):
        loss.compute_loss_from_embeddings([torch.randn(3, 4)], None)
