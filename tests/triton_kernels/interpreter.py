"""Triton's interpreter, made honest: what a GPU would refuse, corrupt or round, it must not let pass.

Plain, the interpreter multiplies bfloat16 as raw bit patterns, rounds to it by truncation, ignores ``input_precision``,
reads and writes wherever a pointer leads and runs programs one after the other, so that no race can show. ``install``
patches it once per process (``TRITON_INTERPRET=1`` must be set before triton is imported):

* bfloat16 is computed in float32 and rounded to nearest even; tf32 and tf32x3 products drop the bits they drop;
* integer overflow and ``tl.device_assert`` raise;
* every active lane of a load, store or atomic must hit a tensor of the launch, or :class:`OutOfBounds`;
* an address that one program stores to may be touched by no other, or :class:`Race`;
* programs run in a random order (``SETTINGS.seed``; None for the grid's own).
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter as plain

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("set TRITON_INTERPRET=1 before triton is imported")

Handle = plain.TensorHandle
Builder = plain.InterpreterBuilder


class OutOfBounds(AssertionError):
    pass


class Race(AssertionError):
    pass


@dataclass
class Settings:
    seed: int | None = 0
    only: dict[str, list[int]] = field(default_factory=dict)  # kernel -> the programs to run, all others are left out
    races: bool = True  # needs a byte map of all tensors: off for huge ones
    reachable: list = field(default_factory=list)  # tensors whose addresses lie in memory, not among the arguments


SETTINGS = Settings()


# ------------------------------------------------------------------------------------------------- memory and races
class Memory:
    """The tensors of one launch as one range of bytes, and which program has touched which byte how."""

    NOBODY, SEVERAL = -1, -2

    def __init__(self, tensors: list, races: bool) -> None:
        spans = []
        for t in tensors:
            if t.numel():
                length = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1
                spans.append((t.data_ptr(), t.data_ptr() + length * t.element_size()))
        merged: list[list[int]] = []
        for first, last in sorted(spans):
            if merged and first < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        self.first = np.array([m[0] for m in merged], np.uint64)
        self.last = np.array([m[1] for m in merged], np.uint64)
        self.base = np.concatenate([[0], np.cumsum((self.last - self.first).astype(np.int64))])
        size = int(self.base[-1]) if races else 0
        self.users = {kind: np.full(size, self.NOBODY, np.int32) for kind in ("load", "store", "atomic")}
        self.races = races

    def touch(self, kind: str, pointers, mask, program: int) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        mask = np.asarray(getattr(mask, "data", mask) if isinstance(mask, Handle) else mask)
        address, mask = np.broadcast_arrays(pointers.data, mask)
        address = address[mask.astype(bool)].astype(np.uint64)
        if address.size == 0:
            return
        span = np.searchsorted(self.first, address, side="right").astype(np.int64) - 1
        outside = span < 0
        span = np.maximum(span, 0)
        outside |= address + np.uint64(size) > self.last[span]
        if outside.any():
            raise OutOfBounds(f"{kind} of program {program}: {outside.sum()} of {address.size} lanes hit no tensor")
        if (address % np.uint64(size)).any():
            raise OutOfBounds(f"{kind} of program {program}: misaligned address")
        if self.races:
            self._claim(kind, self.base[span] + (address - self.first[span]).astype(np.int64), program)

    def _claim(self, kind: str, at: np.ndarray, program: int) -> None:
        if kind == "store" and np.unique(at).size != at.size:
            raise Race(f"program {program}: two lanes of one store hit one address")
        for other, users in self.users.items():
            if {kind, other} in ({"load"}, {"atomic"}):
                continue  # reads share with reads, atomics with atomics
            who = users[at]
            foreign = (who != self.NOBODY) & (who != program)
            if foreign.any():
                raise Race(f"program {program}: {kind} where program {int(who[foreign][0])} had a {other}")
        users = self.users[kind]
        before = users[at]
        users[at] = np.where((before == self.NOBODY) | (before == program), program, self.SEVERAL)


class Launch:
    """The launch under way."""

    memory: Memory
    grid: tuple[int, int, int]
    programs: Sequence[int]
    order: Iterator[int]
    program = 0


def _tensors(values) -> list:
    found = []
    for value in values:
        if isinstance(value, tuple | list):
            found += _tensors(value)
        elif hasattr(value, "data_ptr"):
            found.append(plain._unwrap_tensor(value))
    return found


def _check_memory() -> None:
    init = plain.GridExecutor._init_args_hst

    def begin(self, args, kwargs):
        args, kwargs = init(self, args, kwargs)
        Launch.memory = Memory(_tensors([*args, *kwargs.values(), *SETTINGS.reachable]), SETTINGS.races)
        return args, kwargs

    plain.GridExecutor._init_args_hst = begin

    def guard(name, kind, mask_at):
        original = getattr(Builder, name)

        def guarded(self, pointers, *args, **kwargs):
            mask = args[mask_at] if mask_at is not None else True
            Launch.memory.touch(kind, pointers, mask, Launch.program)
            return original(self, pointers, *args, **kwargs)

        setattr(Builder, name, guarded)

    guard("create_masked_load", "load", 0)
    guard("create_masked_store", "store", 1)
    guard("create_atomic_cas", "atomic", None)
    rmw = Builder.create_atomic_rmw

    def atomic_rmw(self, op, pointers, value, mask, *args):
        Launch.memory.touch("atomic", pointers, mask, Launch.program)
        return rmw(self, op, pointers, value, mask, *args)

    Builder.create_atomic_rmw = atomic_rmw


def _order_programs() -> None:
    set_dim, set_idx, call = Builder.set_grid_dim, Builder.set_grid_idx, plain.GridExecutor.__call__

    def run(self, *args, **kwargs):
        Launch.grid = (*self.grid, 1, 1)[:3]
        Launch.programs = SETTINGS.only.get(self.fn.__name__, range(math.prod(Launch.grid)))
        self.grid = (len(Launch.programs),)
        with np.errstate(all="ignore"):  # overflow to infinity and the logarithm of zero are legal on a GPU
            return call(self, *args, **kwargs)

    def grid_dim(self, x, y, z):
        set_dim(self, *[int(n) for n in Launch.grid])
        order = np.array(Launch.programs, np.int64)
        if SETTINGS.seed is not None:
            order = np.random.default_rng(SETTINGS.seed).permutation(order)
        Launch.order = iter(order.tolist())

    def grid_idx(self, x, y, z):
        Launch.program = program = next(Launch.order)
        _, ny, nz = Launch.grid
        set_idx(self, program // (ny * nz), program // nz % ny, program % nz)

    Builder.set_grid_dim, Builder.set_grid_idx, plain.GridExecutor.__call__ = grid_dim, grid_idx, run


# ------------------------------------------------------------------------------------------------------- arithmetic
def _widen(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(np.shape(values))


def _tf32(values: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bf16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _up(handle):
    return Handle(_widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _down(handle):
    return handle if handle.data.dtype == np.bool_ else Handle(_narrow(handle.data), tl.bfloat16)


def _honest_bf16() -> None:
    def in_float32(name, arity):
        original = getattr(Builder, name)

        def computed(self, *args):
            values, op = args[:arity], args[arity:]
            if not any(_is_bf16(v) for v in values) or (op and op[0] is np.where):
                result = original(self, *args)
            else:
                result = _down(original(self, *[_up(v) for v in values], *op))
            if result.data.dtype == np.bool_ and result.dtype.scalar != tl.int1:
                result = Handle(result.data, tl.int1)  # a comparison keeps its operands' dtype in triton 3.9
            return result

        setattr(Builder, name, computed)

    in_float32("unary_op", 1)
    in_float32("binary_op", 2)
    in_float32("ternary_op", 3)
    in_float32("create_fma", 3)

    cast, to_fp = Builder.cast_impl, Builder.create_fp_to_fp

    def convert(self, source, target, rest):
        to_bf16 = target.scalar == tl.bfloat16
        if _is_bf16(source):
            return source if to_bf16 else rest(_up(source))
        return _down(rest_float32(self, source)) if to_bf16 else rest(source)

    def rest_float32(self, source):
        return source if source.dtype.scalar == tl.float32 else cast(self, source, tl.float32)

    def fp_to_fp(self, source, target, rounding):
        if rounding == ir.ROUNDING_MODE.RTZ:
            return to_fp(self, source, target, rounding)
        same = _is_bf16(source) and target.scalar == tl.float32
        return convert(self, source, target, lambda s: s if same else to_fp(self, s, target, rounding))

    Builder.cast_impl = lambda self, s, t: convert(self, s, t, lambda x: cast(self, x, t))
    Builder.create_fp_to_fp = fp_to_fp

    apply = plain.ReduceScanOpInterface.apply

    def reduce(self, source):
        def refuse(t):
            if t.dtype.scalar == tl.bfloat16:
                raise TypeError("reductions of bfloat16 are not modelled: convert to float32 first")

        for t in source if isinstance(source, tuple) else (source,):
            refuse(t)
        return apply(self, source)

    plain.ReduceScanOpInterface.apply = reduce


def _honest_dot() -> None:
    precision = ir.INPUT_PRECISION
    exact = Builder.create_dot

    def dot(self, a, b, acc, input_precision, imprecise):
        a, b = _up(a), _up(b)
        if a.dtype.scalar != tl.float32 or input_precision == precision.IEEE or _is_exact(a, b):
            return exact(self, a, b, acc, precision.IEEE, imprecise)
        if input_precision not in (precision.TF32, precision.TF32x3):
            raise NotImplementedError(f"{input_precision} is not modelled")
        high_a, high_b = _tf32(a.data), _tf32(b.data)
        result = np.matmul(high_a, high_b)
        if input_precision == precision.TF32x3:
            result += np.matmul(_tf32(a.data - high_a), high_b) + np.matmul(high_a, _tf32(b.data - high_b))
        return Handle(result + acc.data, acc.dtype.scalar)

    def _is_exact(a, b):  # bfloat16 fits tf32
        return np.array_equal(_tf32(a.data), a.data) and np.array_equal(_tf32(b.data), b.data)

    Builder.create_dot = dot


# ---------------------------------------------------------------------------------------------------------- the rest
def _asserts() -> None:
    builder = plain.interpreter_builder
    builder.options = plain.InterpreterOptions(debug=True, sanitize_overflow=True)

    def create_assert(self, condition, message):
        assert bool(np.all(condition.data)), f"{message} (program {Launch.program})"

    Builder.create_assert = create_assert
    # the least tile of a tensor-core product: 16 deep for 16-bit operands, 8 for 32-bit
    builder.codegen_fns["min_dot_size"] = lambda left, _: (1, 1, 16 if left.scalar.primitive_bitwidth == 16 else 8)


def _numpy_indices() -> None:
    """triton 3.6 uses a one-element array as an index, which numpy 2.4 refuses."""
    patch = plain._patch_lang_tensor
    if len(inspect.signature(patch).parameters) == 2:

        def patched(tensor, scope):
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

        plain._patch_lang_tensor = patched


def install() -> None:
    if isinstance(tl.sum, triton.runtime.jit.JITFunction):
        raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set")
    _check_memory()
    _order_programs()
    _honest_bf16()
    _honest_dot()
    _asserts()
    _numpy_indices()
