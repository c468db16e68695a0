"""Threads, forks and memory: what a loss does to the process that it runs in."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from functools import partial

import pytest
import torch

from ssl_kernels import backends, nt_xent_loss, testing
from ssl_kernels.losses import SPECS
from ssl_kernels.testing import Case, evaluate

needs_cpu = pytest.mark.skipif(backends.status()["cpu"] is not None, reason=f"cpu: {backends.status()['cpu']}")
fused = partial(nt_xent_loss, backend="cpu")


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(code: str, timeout: float = 120) -> str:
    """The output of a script in a fresh process, which must end by itself, well before the timeout, and quietly."""
    preamble = "import os, torch\nfrom ssl_kernels import nt_xent_loss, nt_xent_reference\n"
    done = subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------------------------------- threads
# Their products are torch's, whose bits depend on how it deals them out.
NOT_OURS = {"fused_dino_head"}


@needs_cpu
@pytest.mark.parametrize("loss", [name for name in SPECS if name not in NOT_OURS])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "temperature"), [(3, 5, 0.1), (257, 128, 0.1), (700, 33, 0.005), (515, 200, 0.5)])
def test_the_same_bits_on_any_number_of_threads(threads, loss, dtype, n, d, temperature):
    spec = SPECS[loss]
    if temperature not in testing.temperatures(spec):
        temperature = testing.temperatures(spec)[0]
    case = Case(loss, "cpu", "cpu", dtype, n, d, temperature)
    inputs = case.inputs()
    results = []
    for number in (1, 2, 3, 5, 2):
        threads(number)
        results.append(case.evaluate(inputs))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other.names)


@needs_cpu
def test_python_threads_do_not_disturb_each_other(threads):
    cases = [Case("nt_xent", "cpu", "cpu", dtype, n, 64, 0.1) for n in (50, 300) for dtype in testing.DTYPES]
    inputs = [case.inputs() for case in cases]
    alone = [evaluate(case.fused, i) for case, i in zip(cases, inputs, strict=True)]
    threads(2)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [(k, pool.submit(evaluate, cases[k].fused, inputs[k])) for _ in range(6) for k in range(len(cases))]
        for k, job in jobs:
            got = job.result(timeout=120)
            assert all(torch.equal(got[name], alone[k][name]) for name in got.names)


@needs_cpu
def test_the_number_of_threads_is_torchs_and_stays_so(threads):
    threads(2)
    z = torch.randn(600, 64)
    fused(z, z)
    assert torch.get_num_threads() == 2


# ---------------------------------------------------------------------------------------------------------------- forks
@needs_cpu
def test_data_loader_workers_may_call_the_loss_after_the_parent_did():
    assert "the same" in run("""
class Losses(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return nt_xent_loss(z, z.flip(0), backend="cpu")
z = torch.randn(600, 64, requires_grad=True)
torch.set_num_threads(4)
loss = nt_xent_loss(z, z.flip(0), backend="cpu")
loss.backward()  # the parent now has a pool of threads, which no child inherits
z = z.detach()
for _ in range(2):
    loader = torch.utils.data.DataLoader(Losses(), num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(one, loss.detach()[None]) for one in loader)
    assert torch.equal(nt_xent_loss(z, z.flip(0), backend="cpu"), loss.detach())  # and the parent goes on
print("the same")
""")


@needs_cpu
@pytest.mark.parametrize("in_child", [1, 3])
def test_a_fork_after_a_parallel_call_never_hangs(in_child):
    assert run(f"""
import time
def gradient():
    z1.grad = None
    nt_xent_loss(z1, z2, backend="cpu").backward()
    return z1.grad
torch.set_num_threads(3)
z1, z2 = torch.randn(600, 64, requires_grad=True), torch.randn(600, 64)
expected = gradient().clone()
child = os.fork()
if child == 0:
    # with more than one thread a forked child must not touch torch's own pool (that hangs, with us or without);
    # the loss itself may be called with any number
    torch.set_num_threads({in_child})
    os._exit(0 if gradient().tolist() == expected.tolist() else 1)
for _ in range(300):
    done, status = os.waitpid(child, os.WNOHANG)
    if done: break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    raise SystemExit("the child hangs")
print(os.waitstatus_to_exitcode(status), torch.equal(gradient(), expected))
""").split() == ["0", "True"]


# --------------------------------------------------------------------------------------------------------------- memory
PEAK = """
from ssl_kernels.testing import peak_extra_bytes
torch.set_num_threads({threads})
def step(n, d=128):
    z = [torch.randn(n, d, requires_grad=True) for _ in range(2)]
    return lambda: {loss}(*z, 0.1{backend}).backward()
step(64)()
print(peak_extra_bytes(step({n})) / 2**20)
"""


@needs_cpu
@pytest.mark.parametrize("threads", [1, 2])
def test_peak_memory_is_far_from_the_matrix(threads):
    mine = float(run(PEAK.format(threads=threads, loss="nt_xent_loss", backend=", backend='cpu'", n=2048)))
    eager = float(run(PEAK.format(threads=threads, loss="nt_xent_reference", backend="", n=2048)))
    # M = 4,096 rows: the gradients alone are 2 MiB, the matrix 64 MiB
    assert mine < 24 and eager > 128


@needs_cpu
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "highest"), ("float32", "high"), ("bfloat16", "high")])
def test_peak_memory_of_clip(dtype, precision):
    peak = run(f"""
from ssl_kernels import clip_loss
from ssl_kernels.testing import peak_extra_bytes
torch.set_num_threads(2)
torch.set_float32_matmul_precision("{precision}")
def step(n):
    z = [torch.nn.functional.normalize(torch.randn(n, 512)).to(torch.{dtype}).requires_grad_() for _ in range(2)]
    return lambda: clip_loss(*z, torch.tensor(100.0), backend="cpu").backward()
step(64)()
print(peak_extra_bytes(step(4096)) / 2**20)
""")
    # The float32 gradients are 16 MiB, the matrix 64 MiB, of which eager keeps more than one
    assert float(peak) < 60
