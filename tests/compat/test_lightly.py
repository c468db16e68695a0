"""lightly's losses by their formulas, their attributes and messages, and against lightly itself where it is there."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from ssl_kernels.compat import lightly as ours
from ssl_kernels.testing import evaluate, relative_error


def draw(n=6, d=4, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def views():
    return {"out0": draw(), "out1": draw(seed=1)}


def same(ours, theirs, inputs, tolerance=1e-12):
    got, expected = evaluate(ours, inputs), evaluate(theirs, inputs)
    for name in expected.names:
        assert relative_error(got[name], expected[name]) < tolerance, name


# ------------------------------------------------------------------------------------------------------------- formulas
def nt_xent(out0, out1, temperature=0.5):
    z = F.normalize(torch.cat([out0, out1]), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(out0)))


def with_bank(out0, out1, bank, temperature=0.5):
    q, k = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def test_nt_xent():
    same(ours.NTXentLoss(), nt_xent, views())
    same(ours.NTXentLoss(0.1), lambda **v: nt_xent(**v, temperature=0.1), views())
    same(ours.NTXentLoss(temperature=-0.3), lambda **v: nt_xent(**v, temperature=-0.3), views())


def test_direct_clr_has_the_first_features():
    same(ours.DirectCLRLoss(loss_dim=3), lambda out0, out1: nt_xent(out0[:, :3], out1[:, :3]), views())


@pytest.mark.parametrize("size", [(10, 4), 10, (5, 4)])
def test_a_bank_is_read_and_then_written_as_in_lightly(size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loss = ours.NTXentLoss(0.2, memory_bank_size=size)
    loss.memory_bank.read(draw())  # now there is one, whatever the form of its size
    bank, n, at = loss.memory_bank.bank.clone(), len(loss.memory_bank.bank), 0
    for step in range(4):
        inputs = {"out0": draw(4, seed=2 * step), "out1": draw(4, seed=2 * step + 1)}
        before = F.normalize(
            bank.double(), dim=1
        )  # its rows have a norm of 1 to float32's roundings, ours to float64's
        same(loss, lambda before=before, **v: with_bank(**v, bank=before, temperature=0.2), inputs)
        fits = min(4, n - at)  # what does not fit before the end is dropped
        bank[at : at + fits] = F.normalize(inputs["out1"], dim=1)[:fits].float()
        at = 0 if at + 4 >= n else at + 4
        torch.testing.assert_close(loss.memory_bank.bank, bank)
        bank = loss.memory_bank.bank.clone()
        assert loss.memory_bank.bank_ptr.tolist() == [at]


def test_a_bank_stays_as_it_is_in_evaluation_and_comes_back_from_a_checkpoint():
    loss = ours.NTXentLoss(memory_bank_size=(8, 4))
    before = loss.memory_bank.bank.clone()
    first = loss(*views().values())
    assert torch.equal(loss.memory_bank.bank, before)
    loss(views()["out0"].requires_grad_(), views()["out1"])
    assert not torch.equal(loss.memory_bank.bank, before)
    state = loss.state_dict()
    fresh = ours.NTXentLoss(memory_bank_size=(8, 4))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(*views().values()), loss(*views().values())) and loss(*views().values()) != first
    fresh.load_state_dict({})  # lightly's own checkpoints hold no bank
    assert torch.equal(fresh.memory_bank.bank, loss.memory_bank.bank)
    with pytest.warns(UserWarning, match="does not specify feature dimension"):
        lazy = ours.NTXentLoss(memory_bank_size=8)
    lazy.load_state_dict(state)
    assert torch.equal(lazy.memory_bank.bank, loss.memory_bank.bank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_bank_takes_any_dtype_and_batches_larger_than_itself(dtype):
    loss = ours.NTXentLoss(memory_bank_size=(3, 4))
    out0, out1 = draw().to(dtype).requires_grad_(), draw(seed=1).to(dtype)
    loss(out0, out1).backward()
    assert out0.grad.isfinite().all()
    kept = F.normalize(out1.float(), dim=1)[:3]
    torch.testing.assert_close(loss.memory_bank.bank, kept, rtol=1e-6, atol=1e-6)


def test_a_bank_compiles_in_one_graph():
    torch._dynamo.reset()
    plain, other = (ours.NTXentLoss(memory_bank_size=(16, 4)) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in range(4):
        inputs = {"out0": draw(seed=2 * step).float(), "out1": draw(seed=2 * step + 1).float()}
        same(compiled, plain, inputs, 1e-6)
        assert torch.equal(other.memory_bank.bank, plain.memory_bank.bank)


def dcl(out0, out1, temperature=0.1, sigma=None):
    out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
    others, terms = ~torch.eye(len(out0), dtype=torch.bool), []
    for a, b in ((out0, out1), (out1, out0)):
        cosines = (a * b).sum(1)
        weights = 1 if sigma is None else 2 - len(a) * (cosines.detach() / sigma).softmax(0)
        both = torch.cat([(a @ a.T)[others].view(len(a), -1), (a @ b.T)[others].view(len(a), -1)], 1)
        terms.append(((both / temperature).logsumexp(1) - weights * cosines / temperature).mean())
    return (terms[0] + terms[1]) / 2


def test_dcl():
    same(ours.DCLLoss(), dcl, views())
    same(ours.DCLLoss(0.3, weight_fn=None), lambda **v: dcl(**v, temperature=0.3), views())
    same(ours.DCLWLoss(), lambda **v: dcl(**v, sigma=0.5), views())
    same(ours.DCLWLoss(0.2, 0.3), lambda **v: dcl(**v, temperature=0.2, sigma=0.3), views())
    weights = ours.negative_mises_fisher_weights(*(F.normalize(z, dim=1) for z in views().values()))
    assert weights.mean().item() == pytest.approx(1)


# ------------------------------------------------------------------------------------------------ attributes, messages
def test_attributes_that_losses_built_on_it_use():
    loss = ours.NTXentLoss(0.3, (8, 4), False)
    assert loss.temperature == 0.3 and loss.gather_distributed is False and loss.eps == 1e-8
    assert loss.memory_bank.size == (8, 4) and isinstance(loss.cross_entropy, torch.nn.CrossEntropyLoss)
    assert ours.NTXentLoss().memory_bank.size == (0,) and not ours.NTXentLoss().state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"Illegal temperature: abs\(0.0\) < 1e-8"),
        ({"memory_bank_size": -1}, "Illegal memory bank size -1, all entries must be non-negative."),
        ({"memory_bank_size": (10, -2)}, r"Illegal memory bank size \(10, -2\), all entries must be non-negative."),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ours.NTXentLoss(**arguments)


@pytest.mark.parametrize("module", [ours.NTXentLoss, ours.DCLLoss, ours.DCLWLoss])
def test_gathering_without_distributed_asks_once_and_raises(module, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: asked.append(1) or False)
    with pytest.raises(ValueError, match="^gather_distributed is True but torch.distributed is not available"):
        module(gather_distributed=True)
    assert len(asked) == 1


# ---------------------------------------------------------------------------------------------------------- the library
@pytest.mark.parametrize("name", ["NTXentLoss", "DirectCLRLoss", "DCLLoss", "DCLWLoss"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_as_lightly_itself(name, temperature):
    theirs = pytest.importorskip("lightly.loss")
    module = getattr(theirs, name) if hasattr(theirs, name) else pytest.skip(f"no {name} in this version")
    same(getattr(ours, name)(temperature=temperature), module(temperature=temperature), views())


@pytest.mark.parametrize("arguments", [{}, {"p": 1, "eps": 1e-4}])
def test_koleo_as_lightly_itself(arguments):
    theirs = pytest.importorskip("lightly.loss.koleo_loss").KoLeoLoss(**arguments)
    same(ours.KoLeoLoss(**arguments), theirs, {"x": draw(20, 4)})


def test_negative_cosines_as_lightly_itself():
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    same(ours.NegativeCosineSimilarity(), theirs, {"x0": draw(), "x1": draw(seed=1)})


def test_a_bank_as_lightly_itself():
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(memory_bank_size=(10, 4))
    loss = ours.NTXentLoss(memory_bank_size=(10, 4))
    theirs.memory_bank.bank.copy_(loss.memory_bank.bank)
    for step in range(5):
        inputs = {"out0": draw(4, seed=2 * step).float(), "out1": draw(4, seed=2 * step + 1).float()}
        same(loss, theirs, inputs, 1e-5)
        torch.testing.assert_close(loss.memory_bank.bank, theirs.memory_bank.bank)
        assert loss.memory_bank.bank_ptr.tolist() == theirs.memory_bank.bank_ptr.tolist()


def published_sinkhorn(out, iterations=3, epsilon=0.05):
    q = (out / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def test_sinkhorn():
    out = F.normalize(draw(9, 6), dim=1)
    torch.testing.assert_close(ours.sinkhorn(out), published_sinkhorn(out))
    torch.testing.assert_close(ours.sinkhorn(out, 5, 0.2), published_sinkhorn(out, 5, 0.2))


@pytest.mark.parametrize("queue", [False, True])
def test_swav(queue):
    crops = [F.normalize(draw(4, 7, seed), dim=1) for seed in range(5)]
    older = [F.normalize(draw(6, 7, 9 + k), dim=1) for k in range(2)] if queue else None

    def theirs(**crops):
        high, low = list(crops.values())[:2], list(crops.values())[2:]
        total = 0
        for i, rows in enumerate(high):
            rows = torch.cat([rows.detach(), older[i]]) if queue else rows.detach()
            q = published_sinkhorn(rows)[:4]
            for v, z in enumerate([*high, *low]):
                if v != i:
                    total = total - (q * (z / 0.1).log_softmax(1)).sum(1).mean() / 4
        return total / 2

    def mine(**crops):
        return ours.SwaVLoss()(list(crops.values())[:2], list(crops.values())[2:], older)

    same(mine, theirs, {f"crop{k}": z for k, z in enumerate(crops)}, tolerance=1e-9)


def test_dino():
    loss = ours.DINOLoss(5, 0.04, 0.07, 4)
    g, f = ([draw(3, 5, first + k) for k in range(n)] for first, n in ((0, 2), (2, 4)))
    for epoch in range(6):
        temp = torch.linspace(0.04, 0.07, 4)[epoch].item() if epoch < 4 else 0.07
        center = loss.center.double().clone()
        p = ((torch.stack(g) - center) / temp).softmax(-1)
        pairs = torch.einsum("tbd,sbd->ts", p, (torch.stack(f) / 0.1).log_softmax(-1)).fill_diagonal_(0)
        torch.testing.assert_close(loss(g, f, epoch=epoch), -pairs.sum() / (6 * 3), rtol=1e-5, atol=1e-6)
        loss.update_center(g[0])  # of two dimensions too


def test_ibot():
    loss, g, f = ours.IBOTPatchLoss(5, teacher_temp=0.06), draw(3, 5), draw(3, 5, 1)
    mask = torch.tensor([[[True, False], [True, False]], [[False, True], [False, False]]])
    value = -((g / 0.06).softmax(-1) * (f / 0.1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(loss(g, f, mask), (value * torch.tensor([0.5, 0.5, 1.0])).sum() / 2)
    torch.testing.assert_close(loss.center.value.double(), 0.1 * g.mean(0, keepdim=True), rtol=1e-5, atol=1e-7)
