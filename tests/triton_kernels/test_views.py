"""The kernels of cross-entropies between views against the definition."""

from __future__ import annotations

import pytest
import torch
from serving import kernels

from ssl_kernels.backends import reference

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
BATCH = 2


def run(backend, student, teacher, center, temps, same, weight):
    given = student, teacher, center, BATCH, *temps, same
    value, kept = backend.view_cross_entropy(*given)
    probabilities = temps[1] is None
    grads = backend.view_cross_entropy_backward(weight, *given, kept, True, probabilities)
    return value, *grads[0], *(grads[1] if probabilities else ())


KINDS = ("logits", "centred", "centred by view", "probabilities", "same")
# students, teachers, prototypes: one, ragged, several chunks
SHAPES = ((2, 2, 1), (4, 2, 33), (5, 3, 700), (2, 1, 2100), (3, 5, 64))
DTYPES = (F32, F64, BF16, F16)
# every kind with every shape, the dtypes in turn
SETTINGS = [(kind, *shape, DTYPES[(i + j) % 4]) for i, kind in enumerate(KINDS) for j, shape in enumerate(SHAPES)]


@pytest.mark.parametrize(("kind", "students", "teachers", "width", "dtype"), SETTINGS, ids=str)
def test_values_and_gradients(kind, students, teachers, width, dtype):
    wide = F64 if dtype == F64 else F32
    student = torch.randn(students * BATCH, width, dtype=F64).to(dtype).split(BATCH if kind == "same" else 10**6)
    teacher = torch.randn(teachers * BATCH, width, dtype=F64).to(dtype)
    temps = 0.1, 0.04
    if kind == "probabilities":
        teacher, temps = teacher.softmax(1), (0.1, None)
    centers = {"centred": 1, "centred by view": teachers}.get(kind)
    center = None if centers is None else torch.randn(centers, width, dtype=wide)
    weight = torch.rand(BATCH, dtype=wide)
    got = run(kernels, list(student), [teacher], center, temps, kind == "same", weight)
    exact = run(
        reference, [s.double() for s in student], [teacher.double()], None if center is None else center.double(),
        temps, kind == "same", weight.double(),
    )  # fmt: skip
    for mine, truth in zip(got, exact, strict=True):
        allowed = 40 * torch.finfo(mine.dtype).eps
        most = 1e-6 + truth.abs().max().item()
        torch.testing.assert_close(mine.double(), truth, rtol=allowed, atol=allowed * most)


@pytest.mark.parametrize("temp", [1.0, 0.01])
def test_a_constant_added_to_all_logits_changes_nothing(temp):
    student, teacher = torch.randn(4 * BATCH, 300), torch.randn(2 * BATCH, 300)
    value, _ = kernels.view_cross_entropy([student], [teacher], None, BATCH, temp, temp, False)
    moved, _ = kernels.view_cross_entropy([student + 64], [teacher - 64], None, BATCH, temp, temp, False)
    torch.testing.assert_close(moved, value, rtol=1e-5 / temp, atol=1e-5)
