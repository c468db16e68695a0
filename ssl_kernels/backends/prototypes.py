"""Products with prototypes a block at a time, by torch's own matrix product: for the CPU and for GPUs.

Heads have rows of 256 numbers: 512 operations for every exponential, and at those torch's product is as fast as any.
So a block of logits is computed, used up while it lies in the cache, and overwritten by the next. Once the sums over
all prototypes are known, its gradient is that of a small problem whose logits are given: a kernel there is already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Logits of a block: 4 MiB of float32 on a CPU; on a GPU what fits its L2 cache, for there every block is launches too.
# A product with few rows needs many prototypes to be worth its call: at 2 views of 32 images 92 ms with 2,048 in a
# block, 65 with 4,096, 58 with the 8,192 that this makes, 59 with 16,384.
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 23}
LEAST = 256


def wide(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


class Blocks:
    """Blocks of prototypes, and of logits ``x @ prototypes.T`` in the same memory for all.

    With ``room``, which will be the prototypes' gradient and until then has place for all logits of a block where the
    block is, they are kept there too. Of that gradient the last block's is the last to be written: it is a small one,
    and what its logits leave of its place is lent to all others, for what is made of theirs and used up.
    """

    def __init__(self, *x: Tensor, of: int, room: Tensor | None = None) -> None:
        device, rows = x[0].device.type, sum(len(t) for t in x)
        kind = device if device in BLOCK else "cpu"
        self.size = min(of, max(1, BLOCK[kind] // rows // LEAST) * LEAST)
        self.x = x
        self.room = room
        self.of = self.last = of  # the last block begins at the latter where it is a small one
        if room is None:
            self.memory = [t.new_empty(len(t) * self.size) for t in x]
            return
        most, free = max(map(len, x)), room.shape[1] - rows
        small = (most * self.size // (free * LEAST) + 1) * LEAST if free else self.size
        if small < self.size:
            self.last = of - small
            self.lent = room[self.last :].view(-1)[rows * small :]
        self.memory = [x[0].new_empty(most * min(small, self.size))] * len(x)

    def __iter__(self) -> Iterator[slice]:
        for first in range(0, self.last, self.size):
            yield slice(first, min(first + self.size, self.last))
        if self.last < self.of:
            yield slice(self.last, self.of)

    def logits(self, k: int, at: slice, prototypes: Tensor) -> Tensor:
        """Of the ``k``-th rows with a block of prototypes; where there is room, it keeps them."""
        to = self.memory_of(k, at) if self.room is None else self._kept(k, at)
        return torch.mm(self.x[k], wide(prototypes[at]).T, out=to)

    def logits_again(self, k: int, at: slice, prototypes: Tensor) -> Tensor:
        """The same from a second sweep: those that were kept, if they were."""
        return self.logits(k, at, prototypes) if self.room is None else self._kept(k, at)

    def memory_of(self, k: int, at: slice) -> Tensor:
        """Where a block of such logits goes, or what is made of them."""
        memory = self.lent if at.stop <= self.last < self.of else self.memory[k]
        return memory[: len(self.x[k]) * (at.stop - at.start)].view(len(self.x[k]), -1)

    def _kept(self, k: int, at: slice) -> Tensor:
        assert self.room is not None
        first, size = sum(map(len, self.x[:k])), at.stop - at.start
        return self.room[at].view(-1)[first * size :][: len(self.x[k]) * size].view(-1, size)


def prototype_room(prototypes: Tensor) -> Tensor:
    """Memory for the prototypes' gradient. That a backend has some is to say that it keeps logits in there before."""
    return torch.empty_like(prototypes, memory_format=torch.contiguous_format)


class Sums:
    """Sums of exponentials of ``logits / temp`` over blocks, relative to each row's largest logit so far."""

    def __init__(self, x: Tensor, temp: float) -> None:
        self.temp = temp
        self.top = x.new_full((len(x), 1), -torch.inf)
        self.sum = x.new_zeros(len(x), 1)

    def add(self, s: Tensor, to: Tensor) -> Tensor:
        """Turns a block of logits into exponentials; returns what all from former blocks is to be multiplied with."""
        top = torch.maximum(self.top, s.amax(1, keepdim=True))
        keep = torch.where(self.top == top, 1.0, ((self.top - top) / self.temp).exp())
        # where every logit is -inf there is nothing to be relative to
        torch.sub(s, torch.where(top == -torch.inf, 0.0, top), out=to).div_(self.temp).exp_()
        self.sum = self.sum * keep + to.sum(1, keepdim=True)
        self.top = top
        return keep

    @property
    def lse(self) -> Tensor:
        return (self.top / self.temp + self.sum.log()).squeeze(1)


def prototype_cross_entropy(
    student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same, room=None
):
    x, y = wide(student), wide(teacher)
    sums, teacher_sums = Sums(x, student_temp), Sums(y, teacher_temp)
    students, teachers = len(x) // batch, len(y) // batch
    along = x.new_zeros(batch, students, teachers)  # sum_k of the teacher's exponentials times the student's logits
    blocks = Blocks(x, y, of=len(prototypes), room=room)
    for at in blocks:
        s, t = blocks.logits(0, at, prototypes), blocks.logits(1, at, teacher_prototypes)
        e = blocks.memory_of(1, at)
        if center is not None:
            of_view = [rows.view(len(center), -1, rows.shape[1]) for rows in (t, e)]
            torch.sub(of_view[0], center[:, None, at], out=of_view[1])
        keep = teacher_sums.add(t if center is None else e, to=e)
        of_sample = [rows.view(-1, batch, rows.shape[1]).transpose(0, 1) for rows in (s, e)]
        along.mul_(keep.view(1, teachers, batch).permute(2, 0, 1)).baddbmm_(of_sample[0], of_sample[1].mT)
        sums.add(s, to=blocks.memory_of(0, at))
    cross = along / student_temp / teacher_sums.sum.view(teachers, batch).T[:, None]
    h = sums.lse.view(students, batch).T[:, :, None] - cross
    if not same:
        h.diagonal(dim1=1, dim2=2).zero_()
    both = (sums.top, sums.sum), (teacher_sums.top, teacher_sums.sum)
    kept = torch.cat([torch.cat([top, 1 / total], 1) for top, total in both]).T.contiguous()
    return h.sum((1, 2)), kept


def prototype_cross_entropy_backward(
    gradient: Callable[..., Tensor],
    dvalue, student, teacher, prototypes, teacher_prototypes, center, batch, student_temp, teacher_temp, same,
    kept, want_student, want_prototypes, room=None, before_writing: Callable[[Tensor], None] | None = None,
) -> Any:  # fmt: skip
    """``gradient(dvalue, s, t, center, batch, student_temp, teacher_temp, same, kept, to=)`` is that of logits ``s``,
    in the memory of ``to`` if it likes, which may be that of ``s``. ``room``: as the forward sweep left it; it becomes
    the prototypes' gradient, which is announced to ``before_writing``."""
    x, y = wide(student), wide(teacher)
    dx = torch.zeros_like(x) if want_student else student.new_empty(0)
    dprototypes = room
    if room is None:
        dprototypes = prototype_room(prototypes) if want_prototypes else prototypes.new_empty(0)
    if want_prototypes and before_writing is not None:
        before_writing(dprototypes)
    blocks = Blocks(x, y, of=len(prototypes), room=room)
    for at in blocks:
        w, c = wide(prototypes[at]), None if center is None else center[:, at]
        s, t = blocks.logits_again(0, at, prototypes), blocks.logits_again(1, at, teacher_prototypes)
        to = blocks.memory_of(0, at)
        ds = gradient(dvalue, s, t, c, batch, student_temp, teacher_temp, same, kept, to=to)
        if want_student:
            dx.addmm_(ds, w)
        if want_prototypes and prototypes.dtype == x.dtype:
            torch.mm(ds.T, x, out=dprototypes[at])
        elif want_prototypes:
            dprototypes[at] = ds.T @ x
    return dx.to(student.dtype), dprototypes


def prototype_lse(x, prototypes, bias, multiplier, dim):
    x = wide(x) * multiplier
    sums, parts = Sums(x, 1.0), []
    blocks = Blocks(x, of=len(prototypes))
    for at in blocks:
        s = blocks.logits(0, at, prototypes)
        if dim == 1:
            sums.add(s if bias is None else s.add_(bias[at]), to=s)
        else:
            parts.append((s if bias is None else s.add_(bias[:, None])).logsumexp(0))
    return sums.lse if dim == 1 else torch.cat(parts)
