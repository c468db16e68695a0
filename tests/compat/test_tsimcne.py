"""t-SimCNE's losses: the sums that its code stores whole matrices for, in plain PyTorch and float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels import nt_xent_loss, t_simcne_loss
from ssl_kernels.compat import tsimcne


def cosine(z: Tensor, temperature: float) -> Tensor:
    z = F.normalize(z, dim=1)
    return z @ z.T / temperature


def squared(z: Tensor) -> Tensor:
    return (z[:, None] - z[None, :]).square().sum(2)


def student(z: Tensor, temperature: float, dof: float) -> Tensor:
    return -0.5 * (dof + 1) * torch.log1p(squared(z) * temperature / (0.5 * dof))


# a module of ours, and the logits of all pairs of rows under it
CASES = [
    (tsimcne.InfoNCECosine(), lambda z: cosine(z, 0.5)),
    (tsimcne.InfoNCECosine(0.1), lambda z: cosine(z, 0.1)),
    (tsimcne.InfoNCEGaussian(), lambda z: -squared(z)),
    (tsimcne.InfoNCEGaussian(3), lambda z: -9 * squared(z)),  # the temperature is squared
    (tsimcne.InfoNCET(), lambda z: student(z, 1, 2)),  # 12 columns: a tenth of them is less than 2
    (tsimcne.InfoNCET(dof=5, temperature=0.3), lambda z: student(z, 0.3, 5)),
    (tsimcne.InfoNCECauchy(), lambda z: -torch.log1p(2 * squared(z))),
    (tsimcne.InfoNCECauchy(0.5), lambda z: -torch.log1p(squared(z))),
    (tsimcne.CauchyTemp(0.5), lambda z: -torch.log1p(squared(z))),
    (tsimcne.CosineTemp(0.2), lambda z: cosine(z, 0.2)),
]
NAMES = [f"{type(module).__name__}-{k}" for k, (module, _) in enumerate(CASES)]


@pytest.fixture
def features() -> Tensor:
    return torch.randn(14, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("module", "logits"), CASES, ids=NAMES)
def test_loss_alignment_uniformity_and_the_gradient_of_each(module, logits, features):
    module = module.double()
    n = len(features) // 2
    s = logits(leaf := features.clone().requires_grad_())
    ta = -s.diagonal(n).mean()
    lse = s.masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf")).logsumexp(1)
    ru = (lse[:n].mean() + lse[n:].mean()) / 2
    expected = {"loss": ta + ru, "ta": ta, "ru": ru}
    ours = features.clone().requires_grad_()
    results = module(ours)
    assert set(results) == {*expected, "logtemp"} if hasattr(module, "logtemp") else set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value)
        (theirs,) = torch.autograd.grad(value, leaf, retain_graph=True)
        (gradient,) = torch.autograd.grad(results[name], ours, retain_graph=True)
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("kind", [tsimcne.CauchyTemp, tsimcne.CosineTemp])
def test_the_temperature_is_learned_by_its_logarithm(kind, features):
    module = kind(0.3).double()
    assert list(module.state_dict()) == ["logtemp"]

    def loss(logtemp: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"logtemp": logtemp}, (features,))["loss"]

    assert torch.autograd.gradcheck(loss, module.logtemp.detach().requires_grad_())
    results = module(features)
    assert results["logtemp"].item() == pytest.approx(module.logtemp.item()) and not results["logtemp"].requires_grad


def test_the_degrees_of_freedom_follow_the_width():
    features = torch.randn(8, 60, dtype=torch.float64)
    torch.testing.assert_close(tsimcne.InfoNCET()(features), tsimcne.InfoNCET(dof=6)(features))


def test_they_are_the_losses_of_the_package(features):
    a, b = features.chunk(2)
    torch.testing.assert_close(tsimcne.InfoNCECosine(0.2)(features)["loss"], nt_xent_loss(a, b, 0.2))
    torch.testing.assert_close(tsimcne.InfoNCECauchy(0.5)(features)["loss"], t_simcne_loss(a, b))


def test_other_arguments_are_ignored_and_hooks_run(features):
    module, called = tsimcne.CauchyTemp(), []
    module.register_forward_hook(lambda *_: called.append(1))
    module(features, backbone_features=None, labels=torch.zeros(7))
    assert called


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.randn(5, 2), ValueError, "features: expected an even number of rows, .* got 5"),
        (torch.randn(4), ValueError, r"features: expected 2 dimensions \[N, D\], got shape \(4,\)"),
        (torch.randn(0, 2), ValueError, r"features: expected at least one row and one column, got shape \(0, 2\)"),
        (torch.ones(4, 2, dtype=torch.int64), TypeError, "features: expected float32.* got torch.int64"),
    ],
)
def test_bad_features(features, error, message):
    with pytest.raises(error, match=message):
        tsimcne.InfoNCECauchy()(features)
