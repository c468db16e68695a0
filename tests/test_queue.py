"""The memory queue: a ring of rows that is read first and written then."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kernels import MemoryQueue, backends, info_nce_loss, info_nce_reference
from ssl_kernels.ops import FLOATS, enqueue_
from ssl_kernels.testing import relative_error

needs_cpu = pytest.mark.skipif(backends.status()["cpu"] is not None, reason=f"cpu: {backends.status()['cpu']}")


def entry_by_entry(queue: Tensor, pointer: int, rows: Tensor, normalize: bool, wrap: bool) -> int:
    """The docstring of ``enqueue_``, a row at a time; returns the pointer."""
    size = len(queue)
    for row in rows:
        if pointer == size and not wrap:
            break
        slot = pointer % size
        queue[slot] = F.normalize(row.double(), dim=0) if normalize else row
        pointer = slot + 1
    return pointer % size


# ------------------------------------------------------------------------------------------------------------ meaning
SIZES = [(10, 4, 0), (10, 4, 6), (10, 4, 8), (10, 10, 9), (10, 23, 3), (1, 1, 0), (1, 5, 0), (7, 0, 2), (70, 300, 69)]


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("size", "count", "pointer"), SIZES)
def test_meaning(place, size, count, pointer, normalize, wrap):
    for width, to, of in (
        (1, 0, 0),
        (5, 0, 1),
        (40, 1, 0),
        (16, 2, 0),
        (33, 3, 2),
        (128, 0, 2),
        (7, 2, 2),
        (600, 3, 3),
    ):
        generator = torch.Generator().manual_seed(width)
        queue = torch.randn(size, width, generator=generator, dtype=torch.float64).to(FLOATS[to])
        rows = torch.randn(count, width, generator=generator, dtype=torch.float64).to(FLOATS[of])
        mine, at = queue.to(place.device), torch.tensor([pointer], device=place.device)
        before = mine.data_ptr()
        enqueue_(mine, at, rows.to(place.device), normalize=normalize, wrap=wrap, backend=place.backend)
        expected = queue.double()
        end = entry_by_entry(expected, pointer, rows, normalize, wrap)
        assert at.tolist() == [end] and mine.data_ptr() == before
        eps = max(torch.finfo(FLOATS[k]).eps for k in (to, of if of == 1 else to))
        least = torch.finfo(FLOATS[to]).smallest_normal * torch.finfo(FLOATS[to]).eps
        torch.testing.assert_close(mine.cpu().double(), expected, rtol=4 * eps, atol=least)


def test_ring_order_over_many_batches(place):
    queue = MemoryQueue(50, 3, normalize=False, device=place.device, backend=place.backend)
    keys = torch.arange(1000.0, device=place.device)[:, None].expand(-1, 3)
    start = 0
    for count in (7, 50, 1, 49, 13, 120, 3, 0, 64):
        queue.enqueue(keys[start : start + count])
        start += count
        pointer = queue.pointer.item()
        oldest_first = torch.cat([queue.rows[pointer:], queue.rows[:pointer]])[:, 0]
        if start >= 50:
            assert oldest_first.tolist() == list(range(start - 50, start))


def test_rows_of_zeros_and_of_nan(place):
    queue = MemoryQueue(4, 5, device=place.device, backend=place.backend)
    keys = torch.zeros(3, 5, device=place.device)
    keys[1, 2] = torch.nan
    queue.enqueue(keys)
    assert (queue.rows[[0, 2]] == 0).all() and queue.rows[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_of_16_bits_rounds_the_normalised_row_once(place, dtype):
    queue = MemoryQueue(64, 200, dtype, device=place.device, backend=place.backend)
    keys = torch.randn(64, 200, device=place.device)
    queue.enqueue(keys)
    exact = F.normalize(keys.double(), dim=1)
    error = (queue.rows.double() - exact).norm() / exact.norm()
    once = (exact.float().to(dtype).double() - exact).norm() / exact.norm()
    assert error <= 1.01 * once
    assert queue.rows.dtype == dtype


LAYOUTS = {
    "gaps between rows": lambda t: torch.cat([torch.full_like(t, torch.nan), t], 1)[:, t.shape[1] :],
    "transposed": lambda t: t.T.contiguous().T,
    "every other column": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1).flatten(1)[:, ::2],
    "one element late": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_batch(place, layout):
    keys = torch.randn(37, 41, device=place.device)
    queues = [torch.zeros(50, 41, device=place.device) for _ in range(2)]
    for queue, rows in zip(queues, (keys, LAYOUTS[layout](keys)), strict=True):
        enqueue_(queue, torch.tensor(20, device=place.device), rows, backend=place.backend)
    assert torch.equal(*queues)


def test_a_queue_with_gaps_between_rows(place):
    wide = torch.full((12, 20), torch.nan, device=place.device)
    enqueue_(
        wide[:, 4:14], torch.tensor(10, device=place.device), torch.ones(4, 10, device=place.device), normalize=False
    )
    assert (wide[[10, 11, 0, 1], 4:14] == 1).all() and wide.isnan().sum() == 12 * 20 - 40


# ------------------------------------------------------------------------------------------------------ with a loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_has_read_the_state_before(place, dtype):
    torch.manual_seed(0)
    queue = MemoryQueue(60, 16, dtype, device=place.device, backend=place.backend)
    for _ in range(4):
        q = torch.randn(20, 16, device=place.device).to(dtype).requires_grad_()
        k = torch.randn(20, 16, device=place.device).to(dtype)
        wide = q.detach().double().requires_grad_()
        expected = info_nce_reference(wide, k.double(), queue.rows.double(), 0.2)
        expected.backward()
        loss = info_nce_loss(q, k, queue.rows, 0.2, backend=place.backend)
        queue.enqueue(k)  # before backward, without a copy
        loss.backward()
        assert abs(loss.item() - expected.item()) < 1e-5
        assert relative_error(q.grad, wide.grad) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_plain_pytorch_that_keeps_the_queue_notices(place):
    queue = MemoryQueue(10, 4, device=place.device, backend=place.backend)
    x = torch.randn(2, 4, device=place.device, requires_grad=True)
    logits = x @ queue.rows.T
    queue.enqueue(torch.randn(2, 4, device=place.device))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_keys_with_a_gradient_are_taken_as_numbers(place):
    queue = MemoryQueue(10, 4, device=place.device, backend=place.backend)
    queue.enqueue(torch.randn(3, 4, device=place.device, requires_grad=True) * 2)
    assert not queue.rows.requires_grad and queue.pointer.item() == 3


# ----------------------------------------------------------------------------------------------------- the module
def test_begins_with_random_directions():
    torch.manual_seed(0)
    queue = MemoryQueue(1000, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(1000))
    assert queue.rows.mean(0).abs().max() < 0.1 and len(queue) == 1000
    assert repr(queue) == "MemoryQueue(size=1000, dim=8, dtype=torch.float32)"


def test_checkpoints():
    first, second = MemoryQueue(10, 4, torch.bfloat16), MemoryQueue(10, 4, torch.bfloat16)
    first.enqueue(torch.randn(7, 4))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enqueue(torch.ones(5, 4))
    assert torch.equal(first.rows, second.rows) and first.pointer == second.pointer == 2
    assert not MemoryQueue(10, 4, persistent=False).state_dict()
    other = copy.deepcopy(first)
    other.enqueue(torch.ones(1, 4))
    assert first.pointer == 2 and other.pointer == 3


def test_moves_and_changes_dtype_as_a_module():
    queue = MemoryQueue(10, 4).to(torch.float16)
    queue.enqueue(torch.randn(3, 4))
    assert queue.rows.dtype == torch.float16 and queue.pointer.dtype == torch.int64 and queue.pointer == 3


# -------------------------------------------------------------------------------------------------- bad arguments
def make(**changes):
    arguments = {"queue": torch.zeros(10, 4), "pointer": torch.tensor(0), "rows": torch.zeros(3, 4)}
    return arguments | changes


BAD = [
    (make(rows=torch.zeros(3, 5)), ValueError, "rows: expected width 4 as queue, got 5"),
    (make(rows=torch.zeros(4)), ValueError, r"rows: expected 2 dimensions \[N, D\], got shape \(4,\)"),
    (make(rows=torch.zeros(3, 4).long()), TypeError, "rows: expected float32, .*, got torch.int64"),
    (make(rows=torch.zeros(3, 4, device="meta")), ValueError, "rows: expected device cpu as queue, got meta"),
    (make(queue=torch.zeros(0, 4)), ValueError, r"queue: expected at least one row and one column, got .* \(0, 4\)"),
    (make(queue=torch.zeros(4, 10).T), ValueError, r"queue: expected contiguous columns, got strides \(1, 10\)"),
    (make(queue=torch.zeros(10, 4).int()), TypeError, "queue: expected float32, .*, got torch.int32"),
    (make(pointer=torch.tensor(0.0)), TypeError, "pointer: expected int64, got torch.float32"),
    (make(pointer=torch.zeros(2).long()), ValueError, r"pointer: expected one element, got shape \(2,\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[m[:50] for *_, m in BAD])
def test_bad_arguments_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        enqueue_(**arguments)


@needs_cpu
@pytest.mark.parametrize("pointer", [-1, 10])
def test_a_pointer_outside_the_queue_is_noticed(pointer):
    with pytest.raises(ValueError, match=f"pointer: expected 0 to 9, got {pointer}"):
        enqueue_(**make(pointer=torch.tensor(pointer)), backend="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "size: expected at least 1, got 0"),
        ((4, -1), ValueError, "dim: expected at least 1, got -1"),
        ((4, 4, torch.int64), TypeError, "dtype: expected float32, .*, got torch.int64"),
    ],
)
def test_bad_queues(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryQueue(*arguments)


# ------------------------------------------------------------------------------------------------ torch's machinery
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(place, dtype):
    on = {"device": place.device}
    queue, rows = torch.randn(10, 4, **on).to(dtype), torch.randn(7, 4, **on)
    arguments = queue, torch.tensor([6], **on), rows, True, True, place.backend
    torch.library.opcheck(torch.ops.ssl_kernels.enqueue_.default, arguments)


@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
def test_a_step_compiles_in_one_graph(place, engine):
    torch._dynamo.reset()
    torch.manual_seed(0)
    queue = MemoryQueue(50, 8, device=place.device, backend=place.backend)
    other = copy.deepcopy(queue)

    def step(queue, q, k):
        loss = info_nce_loss(q, k, queue.rows, backend=place.backend)
        queue.enqueue(k)
        return loss

    compiled = torch.compile(step, fullgraph=True, backend=engine)
    for count in (20, 20, 30, 7):
        q = torch.randn(count, 8, device=place.device, requires_grad=True)
        k = torch.randn(count, 8, device=place.device)
        expected = torch.autograd.grad(step(other, q, k), q)[0]
        torch.testing.assert_close(torch.autograd.grad(compiled(queue, q, k), q)[0], expected)
        torch.testing.assert_close(queue.rows, other.rows)
        assert queue.pointer == other.pointer


@pytest.mark.gpu
def test_a_captured_graph_goes_on_around_the_ring():
    queue, other = MemoryQueue(100, 32, device="cuda"), MemoryQueue(100, 32, device="cuda")
    other.load_state_dict(queue.state_dict())
    keys = torch.randn(48, 32, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        queue.enqueue(keys)
    torch.cuda.current_stream().wait_stream(side)
    other.enqueue(keys)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        queue.enqueue(keys)
    for _ in range(7):
        keys.copy_(torch.randn(48, 32))
        graph.replay()
        other.enqueue(keys)
        assert torch.equal(queue.rows, other.rows) and torch.equal(queue.pointer, other.pointer)


@pytest.mark.gpu
def test_nothing_is_read_back():
    queue, keys = MemoryQueue(100, 32, device="cuda"), torch.randn(48, 32, device="cuda")
    queue.enqueue(keys)
    torch.cuda.set_sync_debug_mode("error")
    try:
        queue.enqueue(keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------------------------------------------- threads, forks
@needs_cpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_same_bits_on_any_number_of_threads_and_instruction_set_alike(dtype):
    from ssl_kernels._native import load

    native, _ = load()
    used, before = native.isa(), torch.get_num_threads()
    queue, keys = torch.zeros(3000, 100, dtype=dtype), torch.randn(5000, 100)
    by_isa = []
    try:
        for isa in native.isas():
            native.use_isa(isa)
            results = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                mine = queue.clone()
                enqueue_(mine, torch.tensor(17), keys, backend="cpu")
                results.append(mine)
            assert all(torch.equal(other, results[0]) for other in results[1:])
            by_isa.append(results[0])
    finally:
        torch.set_num_threads(before)
        native.use_isa(used)
    for other in by_isa[1:]:
        torch.testing.assert_close(other, by_isa[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@needs_cpu
def test_a_forked_child_may_enqueue():
    code = """
import os, torch
from ssl_kernels import MemoryQueue
torch.set_num_threads(3)
queue, keys = MemoryQueue(4000, 64, normalize=False, backend="cpu"), torch.ones(3000, 64)
queue.enqueue(keys)
child = os.fork()
if child == 0:
    queue.enqueue(keys)
    os._exit(0 if queue.pointer.item() == 2000 and queue.rows.tolist() == [[1.0] * 64] * 4000 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout.split() == ["0"], done.stderr
