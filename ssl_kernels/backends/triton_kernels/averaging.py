"""Exponential moving averages of any number of tensors in one launch.

A program takes a piece of one tensor. Which, it reads from a table on the device with one line a piece: the addresses
of both, how many elements there are, how they are to be treated, and the number of the first, for its random bits.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_kernels.backends.triton_kernels.ring import ARRIVAL
from ssl_kernels.backends.triton_kernels.streams import on_device

# 16 elements a thread of each of two tensors: 48 KiB read and written for 40 bytes of the table
BLOCK = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": True}
DTYPES = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}  # fmt: skip
TABLES = 64  # that are kept, of sets of tensors that were averaged last


@triton.jit
def mixed(x):
    """As the CPU's: every bit of the result depends on every bit of x."""
    x = tl.mul(x ^ (x >> 16), 0x21F0AAAD, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15), 0xD35A2D97, sanitize_overflow=False)
    return x ^ (x >> 15)


@triton.jit
def wrapping_sum(a, b):
    return tl.add(a, b, sanitize_overflow=False)


@triton.jit
def random_bits(seed, step, at):
    """32 bits for every element, a function of the seed, the number of the call and the element's number."""
    low = mixed(seed.to(tl.uint32) ^ mixed(step.to(tl.uint32)))
    high = mixed(wrapping_sum((seed >> 32).to(tl.uint32), mixed(wrapping_sum((step >> 32).to(tl.uint32), low))))
    return mixed(mixed(wrapping_sum(at.to(tl.uint32), low)) ^ wrapping_sum((at >> 32).to(tl.uint32), high))


@triton.jit
def rounded_at_random(value, random, TO: tl.constexpr):
    """One of the two neighbours in TO, with the chances that keep the expectation; what is finite stays so."""
    bits = value.to(tl.uint32, bitcast=True)
    sign = bits & 0x80000000
    size = bits & 0x7FFFFFFF
    if TO == tl.bfloat16:
        up = size + (random >> 16)
        size = tl.where(up >= 0x7F800000, size, up) & 0xFFFF0000
    else:
        random = random >> 19
        up = (size + random) & 0xFFFFE000
        up = tl.where(up < 0x47800000, up, tl.where(size >= 0x477FF000, 0x7F800000, 0x477FE000).to(tl.uint32))
        # the smallest numbers are multiples of 2^-24; no sum here, which might be rounded
        multiple = tl.where(size < 0x38800000, tl.abs(value), 0.0) * 16777216.0
        whole = tl.floor(multiple)
        whole = tl.where(multiple - whole >= 1.0 - random.to(tl.float32) * (1.0 / 8192.0), whole + 1.0, whole)
        tiny = (whole * (1.0 / 16777216.0)).to(tl.uint32, bitcast=True)
        size = tl.where(size < 0x38800000, tiny, up)
    result = (sign | size).to(tl.float32, bitcast=True)
    return tl.where(value == value, result, value).to(TO)


@triton.jit
def update(to, of, lane, inside, keep, take, seed, step, first, COPIED: tl.constexpr):
    """One piece; ``inside`` is None where it is full, for masks that are not known break loads into single elements."""
    TO: tl.constexpr = to.dtype.element_ty
    s = tl.load(of + lane, mask=inside)
    if COPIED:
        tl.store(to + lane, s.to(TO), mask=inside)
    else:
        WIDE: tl.constexpr = tl.float64 if TO == tl.float64 else tl.float32
        t = tl.load(to + lane, mask=inside)
        old, new = t.to(WIDE), s.to(WIDE)
        keep, take = keep.to(WIDE), take.to(WIDE)
        # from the nearer of the two, so that the rounding error is one of the step
        value = tl.where(take < 0.5, old + take * (new - old), new + keep * (old - new))
        if TO == tl.bfloat16 or TO == tl.float16:
            value = rounded_at_random(value, random_bits(seed, step, first + lane), TO)
        value = tl.where(take == 0.0, t, tl.where(keep == 0.0, s.to(TO), value))
        tl.store(to + lane, value, mask=inside)


@triton.jit(do_not_specialize=["keep_bits", "take_bits"])
def average(table, momentum, keep_bits, take_bits, rounding, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """Kinds are (target's dtype, source's dtype, copied, aligned); the numbers come as the bits of float64."""
    line = table + tl.program_id(0).to(tl.int64) * 5
    count, kind, first = tl.load(line + 2), tl.load(line + 3), tl.load(line + 4)
    lane = tl.arange(0, BLOCK)
    if momentum is not None:
        keep = tl.load(momentum).to(tl.float64)
        take = 1.0 - keep
    else:
        keep = keep_bits.to(tl.int64).to(tl.float64, bitcast=True)
        take = take_bits.to(tl.int64).to(tl.float64, bitcast=True)
    seed = first * 0
    step = seed
    if rounding is not None:
        seed = tl.load(rounding)
        step = tl.atomic_add(rounding + 1, 0) % ARRIVAL
    for k in tl.static_range(len(KINDS)):
        if kind == k:
            to = tl.load(line).to(tl.pointer_type(KINDS[k][0]))
            of = tl.load(line + 1).to(tl.pointer_type(KINDS[k][1]))
            COPIED: tl.constexpr = KINDS[k][2]
            if KINDS[k][3]:
                to, of = tl.multiple_of(to, 16), tl.multiple_of(of, 16)
            if count == BLOCK:
                update(to, of, lane, None, keep, take, seed, step, first, COPIED)
            else:
                update(to, of, lane, lane < count, keep, take, seed, step, first, COPIED)
    if rounding is not None:
        before = tl.atomic_add(rounding + 1, ARRIVAL)
        if before // ARRIVAL == tl.num_programs(0) - 1:
            tl.atomic_xchg(rounding + 1, step + 1)


class Plan(NamedTuple):
    """A launch's table, and the kinds of pairs in it."""

    table: Tensor
    kinds: tuple[tuple[tl.dtype, tl.dtype, bool, bool], ...]


_plans: OrderedDict[tuple, Plan] = OrderedDict()
_captured: dict[tuple, Plan] = {}  # tables that CUDA graphs will read again


def average_(
    target: Sequence[Tensor], source: Sequence[Tensor], momentum: Tensor | None, number: float, copied: int,
    rounding: Tensor | None,
) -> None:  # fmt: skip
    plan = _plan(target, source, copied)
    if len(plan.table) == 0:
        return
    if momentum is not None and momentum.device != target[0].device:
        number, momentum = momentum.item(), None  # only a CPU's number comes here, of a compiled graph
    numbers = None if momentum is None else momentum.reshape(()), _bits(number), _bits(1 - number)
    with on_device(target[0]):
        average[(len(plan.table),)](plan.table, *numbers, rounding, KINDS=plan.kinds, **BLOCK)


def _bits(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _plan(target: Sequence[Tensor], source: Sequence[Tensor], copied: int) -> Plan:
    key = (
        target[0].device, copied,
        *((t.data_ptr(), s.data_ptr(), t.numel(), t.dtype, s.dtype) for t, s in zip(target, source, strict=True)),
    )  # fmt: skip
    capturing = target[0].is_cuda and torch.cuda.is_current_stream_capturing()
    plan = _plans.get(key)
    if plan is None:
        if capturing:
            raise RuntimeError(
                "ema_update_: call it once with these tensors before capturing a CUDA graph, so that the table of "
                "their addresses is on the device"
            )
        plan = _plans[key] = _build(target, source, copied)
        if len(_plans) > TABLES:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    if capturing:
        _captured[key] = plan
    return plan


def _build(target: Sequence[Tensor], source: Sequence[Tensor], copied: int) -> Plan:
    kinds: dict[tuple[tl.dtype, tl.dtype, bool, bool], int] = {}
    pairs, first = [], 0
    for k, (t, s) in enumerate(zip(target, source, strict=True)):
        addresses, count = (t.data_ptr(), s.data_ptr()), t.numel()
        aligned = all(a % 16 == 0 for a in addresses)
        if t.dtype in DTYPES:
            kind = DTYPES[t.dtype], DTYPES[s.dtype], k >= len(target) - copied, aligned
            sizes = t.itemsize, s.itemsize
        else:  # integers are copied as words, which lie as float32 does, so that nobody has to change places
            word, size = (tl.uint8, 1) if t.nbytes % 4 or any(a % 4 for a in addresses) else (tl.uint32, 4)
            kind, sizes, count = (word, word, True, aligned), (size, size), t.nbytes // size
        pairs.append((*addresses, *sizes, count, kinds.setdefault(kind, len(kinds)), first))
        first += t.numel()
    lines = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 7)
    block = BLOCK["BLOCK"]
    pieces = (lines[:, 4] + block - 1) // block
    lines = lines.repeat_interleave(pieces, 0)
    to, of, to_size, of_size, counts, which, number = lines.unbind(1)
    start = (torch.arange(len(lines)) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)) * block
    columns = to + start * to_size, of + start * of_size, (counts - start).clamp(max=block), which, number + start
    return Plan(torch.stack(columns, 1).contiguous().to(target[0].device), tuple(kinds))
