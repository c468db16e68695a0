"""One table of cases and a few measures, for the tests, the benchmarks, and whoever adds a loss.

Every loss in ``SPECS`` meets every backend, dtype, shape and temperature here; a new loss or backend needs no new test
code. The rule by which a fused loss is judged is :func:`check` (every case by itself) and
:func:`check_precision` (many draws together): its error against float64 is at most twice that of the loss's plain
PyTorch reference in the same dtype. Nothing here needs pytest.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_kernels.backends import NAMES, ORDER
from ssl_kernels.losses import SPECS
from ssl_kernels.losses.spec import LossSpec
from ssl_kernels.ops import FLOATS, accumulate_dtype

DTYPES = FLOATS

# Ragged on purpose: below, on and above the edges of vectors (16, 32), tiles (64, 128, 256) and blocks.
SHAPES = (
    (1, 1), (1, 16), (1, 2048), (2, 2), (2, 3), (2, 128), (3, 2), (3, 33), (3, 512), (7, 1), (7, 33), (7, 2048),
    (33, 1), (33, 64), (33, 200), (64, 3), (64, 127), (64, 128), (100, 16), (100, 128), (100, 200), (257, 2),
    (257, 33), (257, 128),
)  # fmt: skip

# From sharper than anybody trains to nearly flat; below about 0.015 a fixed shift of the exponent is not safe any more.
TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, -0.1)

# At least as many rows as several tiles, small enough for many draws.
PRECISION_SHAPE = (48, 64)
PRECISION_DRAWS = 32


@dataclass(frozen=True)
class Case:
    """One cell of the table; ``str(case)`` names it."""

    loss: str
    backend: str
    device: str
    dtype: torch.dtype
    n: int
    d: int
    temperature: float
    trained: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        regime = "-trained" if self.trained else ""
        return f"{self.loss}-{self.backend}-{self.device}-{dtype}-{self.n}x{self.d}-tau{self.temperature}{regime}"

    @property
    def spec(self) -> LossSpec:
        return SPECS[self.loss]

    @property
    def fused(self) -> Callable[..., Tensor]:
        """The loss as users call it, served by this case's backend."""
        return partial(self.spec.fused, backend=self.backend)

    def inputs(self, seed: int = 0, learned: bool = True) -> dict[str, Any]:
        """Fresh inputs, the same for the same seed; parameters are 0-d tensors, or plain numbers if not ``learned``."""
        generator = torch.Generator(self.device).manual_seed(seed)
        draw = self.spec.trained if self.trained else self.spec.inputs
        inputs = draw(self.n, self.d, dtype=self.dtype, device=self.device, generator=generator)
        for name, number in (("temperature", self.temperature), ("logit_scale", 1 / self.temperature)):
            if name in inputs:
                inputs[name] = number
        for name in self.spec.parameters if learned else ():
            # through float32, so that the same number is meant in every dtype
            value = torch.tensor(inputs[name], dtype=torch.float32, device=self.device)
            inputs[name] = value.to(accumulate_dtype(self.dtype))
        return inputs

    def evaluate(self, inputs: dict[str, Any]) -> Result:
        """Value and gradients of the loss as this case calls it."""
        return evaluate(self.fused, inputs, self.spec.asking)


def backends_for(device: str) -> tuple[str, ...]:
    """Every backend that is meant for a device, here or not; ``backends.status()`` says which are."""
    return tuple(name for name in NAMES if name in ORDER[device])


def cases(device: str = "cpu") -> list[Case]:
    """Every loss x backend x dtype x shape on a device, each at a third of the temperatures.

    Which third depends on the shape and the dtype: among three dtypes every shape meets every temperature, every dtype
    meets all of both, as drawn and as trained, and the table stays one that a gate has time for.
    """
    return [
        Case(loss, backend, device, dtype, n, d, temperature, trained=(k // 3 + t + i) % 3 == 2)
        for loss, spec in SPECS.items()
        for backend in backends_for(device)
        for i, dtype in enumerate(DTYPES)
        for k, (n, d) in enumerate(shapes(spec))
        for t, temperature in enumerate(temperatures(spec)[(k + i) % 3 :: 3] or temperatures(spec)[:1])
    ]


def precision_cases(device: str = "cpu") -> list[Case]:
    """Those that :func:`check_precision` judges: one shape, every dtype and temperature, drawn or trained in turn."""
    n, d = PRECISION_SHAPE
    return [
        Case(loss, backend, device, dtype, n, d, temperature, trained=(t + i) % 2 == 1)
        for loss, spec in SPECS.items()
        for backend in backends_for(device)
        for i, dtype in enumerate(DTYPES)
        for t, temperature in enumerate(temperatures(spec))
    ]


def shapes(spec: LossSpec) -> list[tuple[int, int]]:
    """Those that a loss is defined for and its reference has room for."""
    return [(n, d) for n, d in SHAPES if n >= spec.smallest and d >= spec.narrowest and n * n * d <= spec.largest]


def temperatures(spec: LossSpec) -> tuple[float, ...]:
    """Those a loss is tried at; a loss that has none gets its own, or a one, which only the judge reads."""
    if not {"temperature", "logit_scale"} & set(spec.parameters):
        return spec.temperatures or (1.0,)
    return spec.temperatures or TEMPERATURES


# ----------------------------------------------------------------------------------------------- values and gradients
@dataclass(frozen=True)
class Result:
    """What a loss gave: its value, and the gradient of every input that has one."""

    loss: Tensor
    grads: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.loss if name == "loss" else self.grads[name]

    @property
    def names(self) -> list[str]:
        return ["loss", *self.grads]


def evaluate(function: Callable[..., Tensor], inputs: dict[str, Any], asking: Collection[str] | None = None) -> Result:
    """Calls ``function(**inputs)`` and goes backward; gradients for ``asking``, as in :func:`as_leaves`."""
    leaves = as_leaves(inputs, asking)
    loss = function(**leaves)
    if loss.requires_grad:
        loss.backward()
    wanted = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
    # an input that the loss does not depend on has no gradient, which is one of zeros
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in wanted.items()}
    return Result(loss.detach(), grads)


def as_leaves(inputs: dict[str, Any], asking: Collection[str] | None = None) -> dict[str, Any]:
    """The inputs anew, those called ``asking`` (None: every floating-point tensor) with a gradient to come."""

    def leaf(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        wanted = value.is_floating_point() if asking is None else name in asking
        return value.detach().clone().requires_grad_(wanted)

    return {name: leaf(name, value) for name, value in inputs.items()}


def oracle(spec: LossSpec, inputs: dict[str, Any]) -> Result:
    """The reference in float64 on the very numbers of ``inputs``: what everything else is compared with."""
    return evaluate(spec.reference, widened(inputs), spec.asking)


def widened(inputs: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same inputs, every floating-point tensor among them in ``dtype``."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """``||got - expected|| / ||expected||``; what is absent on both sides is no error, NaN never passes."""
    error = _distance(got, expected)
    return 0.0 if error == 0.0 else error / expected.double().norm().item()


def _distance(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        raise AssertionError(f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    got, expected = got.double(), expected.double()
    return torch.where(got == expected, 0.0, got - expected).norm().item()  # the same infinity is no error


# ------------------------------------------------------------------------------------------------------- the judgement
def check(
    function: Callable[..., Tensor],
    case: Case,
    inputs: dict[str, Any] | None = None,
    asking: Collection[str] | None = None,
) -> None:
    """Raises AssertionError unless ``function``'s value and gradients are right on one draw of ``case``, or ``inputs``.

    Right means: an error of at most twice the reference's in the same dtype, or of a few roundings of the logits
    (:func:`rounding`) where the reference happened to be closer than that to the truth. Outputs that the function
    leaves unwritten are NaN, so they fail. Gradients: of ``asking``, by default of all features and parameters.
    """
    inputs = case.inputs() if inputs is None else inputs
    asking = case.spec.asking if asking is None else asking
    truth = evaluate(case.spec.reference, widened(inputs), asking)
    eager = evaluate(case.spec.reference, inputs, asking)
    if case.dtype == torch.float16 and not all(eager[name].isfinite().all() for name in eager.names):
        eager = evaluate(case.spec.reference, widened(inputs, torch.float32), asking)  # where it has an answer
    with poisoned_memory():
        fused = evaluate(function, inputs, asking)
    for name in eager.names:
        expected = accumulate_dtype(case.dtype) if name == "loss" else inputs[name].dtype
        if fused[name].dtype != expected:
            raise AssertionError(f"{case}: {name} in {expected} expected, got {fused[name].dtype}")
        most = torch.finfo(expected).max  # a gradient that a dtype cannot hold is the largest that it can
        exact = truth[name] if name == "loss" else truth[name].clamp(-most, most)
        error, theirs = _distance(fused[name], exact), _distance(eager[name], exact)
        allowed = max(8 * rounding(case, inputs, truth, name), 2 * theirs)  # in this order: theirs may be NaN
        if not error <= allowed:
            size = truth[name].norm().item()
            raise AssertionError(f"{case}: {name} (norm {size:.3g}) is off by {error:.3g}, allowed {allowed:.3g}")


def rounding(case: Case, inputs: dict[str, Any], truth: Result, name: str) -> float:
    """What rounding every logit once, and the result once, does at worst to the result called ``name``.

    A logit as large as ``k = 1 / |temperature|`` is stored to ``eps * k``; that moves its probability by as much,
    relatively. Gradients scale with the probability mass that is not on the positive, which a cross-entropy bounds;
    theirs is ``k * mass / N`` over the length of each row (a loss of directions falls off with it), and ``k^2 * mass``
    for the temperature. Other losses' gradients are what is left of parts as large as that, each of
    which is rounded. float64 itself is the truth only to its own last digit, at full mass.

    GPU kernels multiply the rows of 16-bit inputs as float16, rounded once more: an eighth of that here, since
    :func:`check` allows eight roundings.
    """
    k = 1 / abs(case.temperature) + abs(float(inputs.get("logit_bias", 0.0)))
    mass = min(1.0, abs(truth.loss.item())) if case.spec.cross_entropy else 1.0
    size = truth[name].norm().item()
    if name == "temperature":
        scale = k * k
    elif name not in case.spec.features:
        scale = 1.0
    else:
        lengths = inputs[name].double().norm(dim=1)
        scale = k * lengths[lengths > 0].reciprocal().norm().item() / len(lengths)  # as normalisation has it
        scale = max(scale, size / mass) if mass > 0 else scale  # and where nothing is normalised
    if not case.spec.cross_entropy:
        size += scale
    eps, eps64 = torch.finfo(accumulate_dtype(case.dtype)).eps, torch.finfo(torch.float64).eps
    if case.backend in ("cuda", "triton") and case.dtype in (torch.float16, torch.bfloat16):
        eps = torch.finfo(torch.float16).eps / 16
    last_digit = eps if name == "loss" else torch.finfo(inputs[name].dtype).eps
    return (
        last_digit * size
        + eps * (1 + k) * mass * scale
        + eps64 * (1 + k) * max(scale, scale / k) * max(1.0, abs(truth.loss.item()))
    )


def check_precision(function: Callable[..., Tensor], case: Case, draws: int = PRECISION_DRAWS) -> dict[str, float]:
    """Raises AssertionError unless ``function`` is as precise as it should be, over many draws together.

    One draw says little of a scalar: any of the two may be right by accident. Over many, the root mean square error of
    the loss and of every gradient, relative to the truth, is at most twice the reference's in the same dtype, or three
    units in the last place of the result. The logits of the positives are rounded like all others, and alike on both
    sides of a cross-entropy; where they are summed apart, ``k / 16`` units of the loss are left of that. For float64
    the reference is the truth, so what is left is rounding: a few units, times the size of the logits.

    The truth is the fused loss's own ``reference`` backend in float64, which :func:`check` ties to the definition: it
    keeps the positive out of the sums, so it has all its digits where the loss is nearly zero.

    Returns:
        The relative errors of ``function``, by name.
    """
    squares: dict[str, list[float]] = {}
    for seed in range(draws):
        inputs = case.inputs(seed)
        truth = evaluate(partial(case.spec.fused, backend="reference"), widened(inputs), case.spec.asking)
        eager = evaluate(case.spec.reference, inputs, case.spec.asking)
        fused = evaluate(function, inputs, case.spec.asking)
        for name in truth.names:
            sums = squares.setdefault(name, [0.0, 0.0, 0.0])
            for k, t in enumerate((fused[name] - truth[name], eager[name] - truth[name], truth[name])):
                sums[k] += t.double().square().sum().item()
    errors = {}
    for name, (ours, theirs, size) in squares.items():
        dtype = accumulate_dtype(case.dtype) if name in ("loss", *case.spec.parameters) else case.dtype
        floor = 3 * torch.finfo(dtype).eps
        if name == "loss" and not case.spec.cross_entropy:
            floor *= 1 + 1 / abs(16 * case.temperature)
        allowed = max(floor, 2 * _ratio(theirs, size))  # in this order: theirs may be NaN
        if case.dtype == torch.float64:
            allowed *= 2 * (1 + 1 / abs(case.temperature))
        errors[name] = _ratio(ours, size)
        if not errors[name] <= allowed:
            raise AssertionError(f"{case}: relative error of {name} is {errors[name]:.3g}, allowed {allowed:.3g}")
    return errors


def _ratio(squares: float, size: float) -> float:
    """The root of a ratio of sums of squares; nothing at all is no part of anything."""
    return (squares / size) ** 0.5 if squares and size else float(squares)


# --------------------------------------------------------------------------------------------------------------- memory
@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, ``torch.empty`` is filled with NaN, so that an output nobody wrote cannot pass for a right one."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def saved_bytes(function: Callable[..., Tensor], inputs: dict[str, Any], asking: Collection[str] | None = None) -> int:
    """Bytes that the graph of ``function(**inputs)`` keeps for backward, the inputs themselves not counted."""
    leaves = as_leaves(inputs, asking)
    given = {leaf.untyped_storage().data_ptr() for leaf in leaves.values() if isinstance(leaf, Tensor)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = function(**leaves)
    del loss
    return sum(kept.values())


def peak_extra_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """Most memory in use at any moment of ``call()`` beyond what was in use before it.

    On a CPU this is the peak of the resident set, which the kernel keeps (Linux only): run it in a fresh process, and
    warm up first on a small problem, or pages and libraries that are touched for the first time are counted too.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's: what it has kept of freed memory would be used again and not be counted
        trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # resets the peak to what is resident now
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))
