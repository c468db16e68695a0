"""Every pass of the emulated kernels on ragged little problems, against the definitions: exits with 1 if one is wrong.

SSL_EMULATED=module python tests/cuda/check.py    as tests/test_cuda.py does with kernels that have a fault
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "emulation"))
from load import Emulated

emulated = Emulated(Path(os.environ["SSL_EMULATED"]))

import torch  # noqa: E402

from ssl_kernels.backends import cuda, reference  # noqa: E402
from ssl_kernels.backends.gpu import launch  # noqa: E402

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
SEEDS = 4


def within(dtype: torch.dtype, width: int, temperature: float, normalize: bool):
    x = [torch.randn(35, width, dtype=F64).to(dtype) for _ in range(2)]
    scale, upstream = torch.tensor(1 / temperature), (torch.randn(70), torch.randn(1, 70))

    def of(backend, wide):
        z, args = [t.to(wide or dtype) for t in x], (scale.to(wide or F32), 1.0, 35, normalize)
        neg, pos, top = backend.self_lse(z, *args)
        dx, dscale = backend.self_lse_backward(*(t.to(wide or F32) for t in upstream), z, *args, neg, top)
        return neg + top, pos + top, torch.cat(dx), dscale

    return of(cuda, None), of(reference, F64)


def across(dtype: torch.dtype, width: int, temperature: float, normalize: bool):
    x, y = (torch.randn(n, width, dtype=F64).to(dtype) for n in (35, 70))
    scale, upstream = torch.tensor(1 / temperature), [torch.randn(n) for n in (35, 35, 70, 35)]

    def of(backend, wide):
        a, b, args = x.to(wide or dtype), [y.to(wide or dtype)], (scale.to(wide or F32), 1.0, 3, normalize)
        neg, pos, top, neg_y, _, top_y = backend.cross_lse(a, b, *args, True)
        given = *(t.to(wide or F32) for t in upstream), a, b, *args, neg, top, neg_y, top_y, True, True
        dx, dy, dscale = backend.cross_lse_backward(*given)
        *_, mean = backend.attend_lse(a, b, *args)
        return neg + top, pos + top, neg_y + top_y, dx, dy[0], dscale, mean

    return of(cuda, None), of(reference, F64)


def wrong(name: str, got, want, tolerance: float) -> bool:
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        error = ((a.double() - b).norm() / b.norm()).item()
        if not error < tolerance:
            print(f"wrong: {name}, result {k}: {error:.1e}")
            return True
    return False


def main() -> int:
    torch.set_num_threads(1)
    launch.PROGRAMS = 4  # several spans of columns
    empty = torch.empty
    torch.empty = lambda *a, **k: t.fill_(float("nan")) if (t := empty(*a, **k)).is_floating_point() else t
    for arch in (80, 90):
        launch.architecture = lambda device, arch=arch: arch
        for seed in range(SEEDS):
            emulated.seed(seed)
            torch.manual_seed(seed)
            width, temperature = (20, 0.1) if seed % 2 else (70, 0.005)
            for problem in (within, across):
                for dtype, tolerance in ((F32, 1e-4), (BF16, 1e-2)):
                    name = f"{problem.__name__}, {dtype}, width {width}, seed {seed}, sm_{arch}"
                    try:
                        normalize = seed < SEEDS - 1
                        if wrong(name, *problem(dtype, width, temperature if normalize else 1.0, normalize), tolerance):
                            return 1
                    except RuntimeError as complaint:
                        print(f"wrong: {name}: {complaint}")
                        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
