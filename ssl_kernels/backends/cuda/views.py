"""Cross-entropies between views, by the CUDA kernels."""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.backends.cuda.native import DTYPES, C, address, stream
from ssl_kernels.backends.gpu.views import Part, Partial, Views


def view_columns(p: Views) -> int:
    return C.view_columns(_views(p, Part(p.teacher, 0, 0)))


def view_sums(p: Views, part: Part, sums: Partial) -> None:
    C.view_sums(_views(p, part), _sums(sums), stream(p.teacher.device))


def view_values(p: Views, sums: Partial, value: Tensor, kept: Tensor) -> None:
    views = _views(p, Part(p.teacher, 0, 0))
    C.view_values(views, _sums(sums), len(sums.tops), address(value), address(kept), stream(p.teacher.device))


def view_gradients(
    p: Views, part: Part, dvalue: Tensor, kept: Tensor, dstudent: Tensor | None, dteacher: Tensor | None
) -> None:
    results = address(dvalue), address(kept), address(dstudent), address(dteacher)
    C.view_gradients(_views(p, part), *results, stream(p.teacher.device))


def _views(p: Views, part: Part) -> tuple[object, ...]:
    rows = (address(part.rows), part.rows.stride(0)), (address(p.teacher), p.teacher.stride(0))
    numbers = p.batch, part.views, part.first, p.students, p.teachers, p.width
    center = address(p.center), p.center_stride
    return *rows, center, DTYPES[p.teacher.dtype], numbers, p.given, p.same, *p.scales


def _sums(sums: Partial) -> tuple[int, ...]:
    return tuple(map(address, sums))
