"""Losses over several processes (gloo, on this machine): loss and gradient are those of one process with all rows."""

from __future__ import annotations

import multiprocessing
import traceback
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ssl_kernels import (
    ClipLoss,
    DCLLoss,
    DINOLoss,
    FusedDINOHeadLoss,
    KoLeoLoss,
    NTXentLoss,
    SigLipLoss,
    clip_reference,
    dcl_reference,
    fused_sinkhorn_center,
    info_nce_reference,
    koleo_reference,
    nt_xent_reference,
    siglip_reference,
    sinkhorn_center,
    use_backend,
)
from ssl_kernels.compat import solo
from ssl_kernels.compat.moco import MoCo

N = 5  # rows of one process


# ------------------------------------------------------------------------------------------------------------ the model
def leaves() -> dict[str, torch.Tensor]:
    """What all processes share: a weight that makes the embeddings, and the parameters of the losses."""
    values = {
        "weight": torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        "temperature": torch.tensor(0.2, dtype=torch.float64),
        "logit_scale": torch.tensor(5.0, dtype=torch.float64),
        "logit_bias": torch.tensor(-2.0, dtype=torch.float64),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def embed(weight: torch.Tensor, rank: int, size: int) -> list[torch.Tensor]:
    """Three views of the rows of one process of so many."""
    x = torch.randn(3, 4 * N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[:, : size * N]
    x[1:] = x[0] + 0.5 * x[1:]
    return list(x[:, rank * N : (rank + 1) * N] @ weight)


def prototypes_of(width: int) -> torch.Tensor:
    return torch.randn(7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(loss: torch.Tensor, shared: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    grads = torch.autograd.grad(loss, list(shared.values()), allow_unused=True)
    found = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(shared.items(), grads, strict=True)}
    return {"loss": loss.detach()} | found


# ------------------------------------------------- every loss twice: over processes, and with all rows in one of them
def nt_xent(p, views, count=2):
    return NTXentLoss(p["temperature"], gather_distributed=True)(*views[:count])


def nt_xent_whole(p, views, count=2):
    return nt_xent_reference(*views[:2], p["temperature"], more=views[2:count])


def dcl(p, views):
    return DCLLoss(p["temperature"], gather_distributed=True)(*views[:2])


def dcl_whole(p, views):
    return dcl_reference(*views[:2], p["temperature"])


def of_features(loss, p, views):
    return loss(*(F.normalize(z, dim=1) for z in views[:2]), p["logit_scale"], p["logit_bias"])


def here() -> dict[str, int]:
    return {"rank": dist.get_rank(), "world_size": dist.get_world_size()}


def clip(p, views, **flags):
    return of_features(ClipLoss(**flags, **here()), p, views)


def siglip(p, views, dist_impl=None):
    return of_features(SigLipLoss(dist_impl=dist_impl, **here()), p, views)


def by_indexes(p, views):
    indexes = dist.get_rank() * N + torch.arange(N)
    return solo.simclr_loss_func(torch.cat(views[:2]), indexes.repeat(2), p["temperature"])


def nnclr(p, views):
    return solo.nnclr_loss_func(views[0], views[1], p["temperature"])


def nnclr_whole(p, views):
    return info_nce_reference(views[0], views[1], None, p["temperature"])


def koleo(p, views):
    return KoLeoLoss(gather_distributed=True)(views[0])


def koleo_whole(p, views):
    return koleo_reference(views[0])


clip_whole, siglip_whole = partial(of_features, clip_reference), partial(of_features, siglip_reference)

LOSSES = {
    "nt_xent": (nt_xent, nt_xent_whole),
    "nt_xent of three views": (partial(nt_xent, count=3), partial(nt_xent_whole, count=3)),
    "dcl": (dcl, dcl_whole),
    "clip, whole loss": (partial(clip, gather_with_grad=True), clip_whole),
    "clip, local loss": (partial(clip, local_loss=True, gather_with_grad=True), clip_whole),
    "clip, no gradient to others": (clip, clip_whole),
    "simclr of solo-learn": (by_indexes, nt_xent_whole),
    "nnclr of solo-learn": (nnclr, nnclr_whole),
    "koleo": (koleo, koleo_whole),
    "siglip": (siglip, siglip_whole),
    "siglip, shift": (partial(siglip, dist_impl="shift"), siglip_whole),
    "siglip, reduce": (partial(siglip, dist_impl="reduce"), siglip_whole),
    "siglip, gather": (partial(siglip, dist_impl="gather"), siglip_whole),
}
FLAGS = [(local, grad) for local in (False, True) for grad in (False, True)]


def from_logits(p, views, local_loss, gather_with_grad):
    """CLIP's loss from the logits that ClipLoss hands to losses built on it."""
    loss = ClipLoss(local_loss, gather_with_grad, **here())
    x, y = (F.normalize(z, dim=1) for z in views[:2])
    per_image, per_text = loss.get_logits(x, y, p["logit_scale"], p["logit_bias"])
    labels = loss.get_ground_truth(x.device, len(per_image))
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


# -------------------------------------------------------------------------------------------------------- the processes
def everything(rank: int, size: int) -> dict:
    shared = leaves()
    found: dict = {}
    for name, (loss, _) in LOSSES.items():
        found[name] = gradients(loss(shared, embed(shared["weight"], rank, size)), shared)
    for flags in FLAGS:
        names = dict(zip(("local_loss", "gather_with_grad"), flags, strict=True))
        found["forward", flags] = gradients(clip(shared, embed(shared["weight"], rank, size), **names), shared)
        found["logits", flags] = gradients(from_logits(shared, embed(shared["weight"], rank, size), *flags), shared)
    for name in LOSSES:  # as data-parallel training averages
        for t in found[name].values():
            dist.all_reduce(t)
            t /= size
    bank = NTXentLoss(memory_bank_size=(2 * size * N, 4), gather_distributed=True)
    q, k, _ = (z.float() for z in embed(shared["weight"], rank, size))
    bank(q, k)
    found["bank"] = {"bank": bank.memory_bank.bank, "bank_ptr": bank.memory_bank.bank_ptr}

    # centres of logits, and of features whose logits nobody stores; one process has fewer rows than the others
    z = [z.detach() for z in embed(shared["weight"], rank, size)]
    few, prototypes = z[0][: N - (rank == 0)], prototypes_of(4)
    stored, unstored = DINOLoss(7, center_momentum=0.0), FusedDINOHeadLoss(7, center_momentum=0.0)
    stored([t @ prototypes.T for t in z[:2]], [t @ prototypes.T for t in z], teacher_temp=0.1)
    unstored(z[:2], z, prototypes, teacher_temp=0.1)
    found["centres"] = {"stored": stored.center.flatten(), "unstored": unstored.center.flatten()}
    found["sinkhorn"] = {
        "stored": sinkhorn_center(few @ prototypes.T, 0.3),
        "unstored": fused_sinkhorn_center(few, prototypes, 0.3),
    }

    torch.manual_seed(0)
    moco = MoCo(lambda num_classes: torch.nn.Linear(4, num_classes), dim=3, K=2 * size * N)
    torch.manual_seed(rank)  # the order in which images are shuffled is that of process 0
    logits, _ = moco(q.detach(), k.detach())
    found["moco"] = {"queue": moco.queue.T, "queue_ptr": moco.queue_ptr, "positives": logits[:, 0] * moco.T}
    return found


def process(rank: int, size: int, file: str, results: multiprocessing.Queue) -> None:
    """Everything that is asked of so many processes, in one go: what takes long is their start."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
        with use_backend("reference"):  # the kernels have tests of their own
            found = everything(rank, size)
        # numbers, not tensors: those would have to outlive this process
        results.put((rank, {key: {n: t.tolist() for n, t in value.items()} for key, value in found.items()}))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request, tmp_path_factory):
    """What each of so many processes found, in the order of their ranks."""
    size, file = request.param, str(tmp_path_factory.mktemp("gloo") / "store")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=process, args=(r, size, file, results), daemon=True) for r in range(size)]
    for p in processes:
        p.start()
    answers = dict(results.get(timeout=120) for _ in processes)
    for p in processes:
        p.join(30)
    for answer in answers.values():
        assert not isinstance(answer, str), answer
    return [answers[r] for r in range(size)]


def close(got: dict, expected: dict, **scales: float) -> None:
    for name, value in expected.items():
        wanted = scales.get(name, 1.0) * torch.as_tensor(value, dtype=torch.float64)
        torch.testing.assert_close(
            torch.tensor(got[name], dtype=torch.float64), wanted, rtol=1e-10, atol=1e-12, msg=name
        )


@pytest.mark.parametrize("name", LOSSES)
def test_average_over_processes_is_the_whole_batch(found, name):
    shared = leaves()
    whole = [
        torch.cat(parts)
        for parts in zip(*(embed(shared["weight"], r, len(found)) for r in range(len(found))), strict=True)
    ]
    expected = gradients(LOSSES[name][1](shared, whole), shared)
    # open_clip's default computes the whole loss everywhere, and each process moves its own features only
    scales = {"weight": 1 / len(found)} if name == "clip, no gradient to others" else {}
    for answers in found:
        close(answers[name], expected, **scales)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_clip_is_the_cross_entropy_of_its_logits_under_all_flags(found, flags):
    for answers in found:
        close(answers["forward", flags], answers["logits", flags])


def test_a_bank_gets_the_keys_of_all_processes(found):
    weight = leaves()["weight"].detach()
    keys = torch.cat([embed(weight, r, len(found))[1] for r in range(len(found))])
    for answers in found:
        assert answers["bank"]["bank_ptr"] == [len(keys)]
        bank = torch.tensor(answers["bank"]["bank"])[: len(keys)]
        torch.testing.assert_close(bank, F.normalize(keys, dim=1).float())


def test_centres_are_those_of_all_processes(found):
    w = prototypes_of(4)
    views = [[z.detach() for z in embed(leaves()["weight"], r, len(found))] for r in range(len(found))]
    mean = torch.cat([z @ w.T for rows in views for z in rows[:2]]).mean(0)
    z = torch.cat([rows[0][: N - (rank == 0)] for rank, rows in enumerate(views)])
    expected = sinkhorn_center(z @ w.T, 0.3)
    for answers in found:
        for name in ("stored", "unstored"):
            torch.testing.assert_close(torch.tensor(answers["centres"][name]), mean.float())
        close(answers["sinkhorn"], {"stored": expected, "unstored": expected})


def test_moco_shuffles_and_gathers_without_mixing_up_pairs(found):
    torch.manual_seed(0)
    alone = MoCo(lambda num_classes: torch.nn.Linear(4, num_classes), dim=3, K=2 * len(found) * N)
    views = [[z.detach().float() for z in embed(leaves()["weight"], r, len(found))[:2]] for r in range(len(found))]
    logits, _ = alone(*(torch.cat(parts) for parts in zip(*views, strict=True)))
    for rank, answers in enumerate(found):
        assert answers["moco"]["queue_ptr"] == alone.queue_ptr.tolist()
        torch.testing.assert_close(torch.tensor(answers["moco"]["queue"]), alone.queue.T)
        expected = logits[rank * N : (rank + 1) * N, 0].detach() * alone.T
        torch.testing.assert_close(torch.tensor(answers["moco"]["positives"]), expected)


def test_without_processes_gathering_changes_nothing():
    shared = leaves()
    views = embed(shared["weight"], 0, 1)
    for module in (NTXentLoss, DCLLoss):
        torch.testing.assert_close(module(0.2, gather_distributed=True)(*views[:2]), module(0.2)(*views[:2]))
