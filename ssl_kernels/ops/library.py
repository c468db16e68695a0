"""How an operation of the waist is made known to PyTorch, and called around the dispatcher where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIB = torch.library.Library("ssl_kernels", "DEF")

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    autograd: Callable[..., Any] | None = None,
    widen: int = 0,
) -> None:
    """Registers ``torch.ops.ssl_kernels.<name>``: one implementation for every device, shapes without data, gradients.

    Args:
        schema: ``name(arguments) -> results``.
        implementation: chooses the backend and calls it; sees ordinary tensors.
        fake: the results' shapes and dtypes, without data; checks its arguments too.
        autograd: what runs where a gradient may be wanted; calls the op again below autograd.
        widen: so many leading arguments, tensors or lists of tensors, are features. Autocast may hand over views of
            different width (a bfloat16 and a float32 branch): they are widened to one dtype, never narrowed. The
            reductions accumulate in float32 whatever comes in, so there is nothing else for autocast to decide.
    """
    name = schema.split("(")[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIB.impl(name, implementation, key)
    torch.library.register_fake(f"ssl_kernels::{name}", fake, lib=LIB)
    if autograd is not None:
        LIB.impl(name, autograd, "Autograd")
    op = getattr(torch.ops.ssl_kernels, name)

    def without_autocast(*arguments: Any) -> Any:
        # backward() inside the autocast region must not narrow the matrix products of a backend written in PyTorch
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*_widened(arguments[:widen]), *arguments[widen:])

    for key in ("AutocastCPU", "AutocastCUDA"):
        LIB.impl(name, without_autocast, key)


def _widened(features: tuple[Any, ...]) -> list[Any]:
    flat = [t for f in features for t in (f if isinstance(f, (list, tuple)) else [f])]
    if not flat or not all(t.is_floating_point() for t in flat):
        return list(features)
    dtype = flat[0].dtype
    for t in flat[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return [[t.to(dtype) for t in f] if isinstance(f, (list, tuple)) else f.to(dtype) for f in features]


def plain(tensors: Sequence[Tensor]) -> bool:
    """Ordinary tensors and nobody watching: then the dispatcher has nothing to decide, and the op's implementation can
    be called as it is. Two trips through it cost 40 us a step, a third of all there is at N = 32."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_any_autocast_enabled()
        and len(tensors) > 0
        and all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta for t in tensors)
    )


def below_autograd() -> Any:
    """Inside, ops run as they are: their gradients are somebody else's business."""
    return torch._C._AutoDispatchBelowAutograd()


def once(run: Callable[..., Any], *arguments: Any) -> Any:
    """``run(*arguments)``, a tuple of tensors that raise when they are differentiated in turn."""
    return _Once.apply(run, *arguments) if torch.is_grad_enabled() else run(*arguments)


class _Once(torch.autograd.Function):
    """Stands in the graph under ``create_graph=True`` only to say what is missing, where silence would be wrong."""

    @staticmethod
    def forward(ctx, run, *arguments):
        with below_autograd():
            return run(*arguments)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "ssl_kernels: second derivatives are not available from the fused losses; use the loss's *_reference "
            "function, which is plain PyTorch and stores the similarity matrix"
        )
