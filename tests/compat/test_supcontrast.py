"""SupContrast's loss by its formula: features [B, V, ...], labels or masks, both modes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat.supcontrast import SupConLoss
from ssl_kernels.testing import evaluate

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
MASK = torch.rand(6, 6, generator=torch.Generator().manual_seed(2)) < 0.5  # not symmetric


def features(views, *shape):
    return torch.randn(6, views, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_rows(features, labels=None, mask=None, temperature=0.07, contrast_mode="all", base_temperature=0.07):
    """The definition a row at a time; rows of the views one below the other."""
    batch, views = features.shape[:2]
    rows = [features[i, v].flatten() for v in range(views) for i in range(batch)]
    if mask is None:
        labels = torch.arange(batch) if labels is None else labels
        mask = labels[:, None] == labels
    terms = []
    for a in range(len(rows) if contrast_mode == "all" else batch):
        others = [j for j in range(len(rows)) if j != a]
        log_prob = torch.stack([rows[a] @ rows[j] for j in others]).div(temperature).log_softmax(0)
        positives = torch.tensor([bool(mask[a % batch, j % batch]) for j in others])
        terms.append(-log_prob[positives].mean() if positives.any() else log_prob.sum() * 0)
    return temperature / base_temperature * torch.stack(terms).mean()


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("by", ["labels", "mask", "nothing"])
@pytest.mark.parametrize("unit", [True, False])
def test_the_definition_by_rows(mode, views, by, unit):
    x = features(views, 4)
    x = F.normalize(x, dim=-1) if unit else 0.3 * x  # it takes them as they are
    given = {"labels": {"labels": LABELS}, "mask": {"mask": MASK}, "nothing": {}}[by]
    loss = SupConLoss(0.2, mode, 0.1)
    got = evaluate(lambda features: loss(features, **given), {"features": x})
    rest = {"temperature": 0.2, "contrast_mode": mode, "base_temperature": 0.1}
    expected = evaluate(lambda features: by_rows(features, **given, **rest), {"features": x})
    for name in expected.names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-11, atol=1e-13)


def test_defaults_labels_of_a_column_and_features_of_any_shape():
    x = F.normalize(features(2, 12), dim=-1)
    expected = by_rows(x, LABELS)
    torch.testing.assert_close(SupConLoss()(x, LABELS[:, None]), expected)
    torch.testing.assert_close(SupConLoss()(x.view(6, 2, 3, 4), LABELS), expected)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((features(1)[:, 0],), {}, r"features: expected \[B, V, ...\], at least 3 dimensions, got \(6,\)"),
        ((features(2, 4), LABELS, MASK), {}, "Cannot define both `labels` and `mask`"),
        ((features(2, 4), LABELS[:5]), {}, "Num of labels does not match num of features"),
        ((features(2, 4), None, MASK[:5]), {}, r"mask: expected shape \(6, 6\), got \(5, 6\)"),
        ((features(2, 4), LABELS), {"contrast_mode": "both"}, "Unknown mode: both"),
    ],
)
def test_messages(arguments, keywords, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SupConLoss(**keywords)(*arguments)
