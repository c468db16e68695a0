"""Who serves a call, and what is said where nobody can."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ssl_kernels import backends, nt_xent_loss, use_backend
from ssl_kernels.backends import override, resolve, status

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def test_every_name_has_a_status():
    assert list(status()) == list(backends.NAMES)
    assert status()["reference"] is None
    for reason in status().values():
        assert reason is None or (reason and "\n" not in reason)


def test_what_is_called_available_serves_its_devices():
    for name, reason in status().items():
        if reason is None:
            module = resolve(name, torch.device("cpu" if name in ("cpu", "reference") else "cuda"), "self_lse")
            assert module.__name__ == f"ssl_kernels.backends.{name}"


def test_the_fastest_available_is_the_default():
    expected = next(name for name in backends.ORDER["cpu"] if status()[name] is None)
    assert resolve("", CPU, "self_lse") is resolve(expected, CPU, "self_lse")


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu ", "torch"])
def test_unknown_backend(name):
    message = f"^backend: expected one of cuda, triton, cpu, reference, got '{name}'$"
    with pytest.raises(ValueError, match=message):
        nt_xent_loss(Z, Z, backend=name)
    with pytest.raises(ValueError, match=message), use_backend(name):
        raise AssertionError("not reached")


@pytest.mark.parametrize("name", [name for name, reason in status().items() if reason])
def test_unavailable_backend_says_why_and_what_there_is(name):
    with pytest.raises(ValueError) as caught:
        nt_xent_loss(Z, Z, backend=name)
    message = str(caught.value)
    assert message.startswith(f"backend='{name}' cannot serve cpu tensors: ") and "\n" not in message
    assert status()[name] in message
    assert message.endswith("available: " + ", ".join(n for n in ("cpu", "reference") if status()[n] is None))


def test_an_override_that_cannot_serve_raises_where_it_is_used():
    missing = [name for name, reason in status().items() if reason]
    if not missing:
        pytest.skip("every backend is here")
    with use_backend(missing[0]), pytest.raises(ValueError, match="cannot serve cpu tensors"):
        nt_xent_loss(Z, Z)


def test_an_operation_that_a_backend_lacks_passes_to_the_next_in_silence(monkeypatch, recwarn):
    """As points and nearest neighbours do, which the CUDA kernels leave to Triton."""
    fastest = next(name for name in backends.ORDER["cpu"] if status()[name] is None)
    if fastest == "reference":
        pytest.skip("there is only the reference")
    monkeypatch.setattr(backends, "ORDER", {"cpu": (fastest, fastest, "reference")})
    module = resolve(fastest, CPU, "self_lse")
    monkeypatch.delattr(module, "nearest")
    backends._resolve.cache_clear()
    monkeypatch.setattr(backends, "NAMES", (fastest, "reference"))
    assert resolve("", CPU, "self_lse") is module
    assert not recwarn.list
    with pytest.warns(RuntimeWarning, match=f"slow reference backend.*{fastest}: it has no nearest"):
        assert resolve("", CPU, "nearest") is resolve("reference", CPU, "nearest")
    with pytest.raises(
        ValueError, match=f"^backend='{fastest}' cannot serve cpu tensors: it has no nearest; available: r"
    ):
        resolve(fastest, CPU, "nearest")
    backends._resolve.cache_clear()


def test_use_backend_is_undone_nests_and_yields_to_the_argument(monkeypatch):
    served = []
    module = resolve("reference", CPU, "self_lse")
    original = module.self_lse
    monkeypatch.setattr(module, "self_lse", lambda *a: served.append("reference") or original(*a))
    assert override() == ""
    with use_backend("reference"):
        nt_xent_loss(Z, Z)
        assert served == ["reference"]
        with use_backend("triton"):
            assert override() == "triton"
            nt_xent_loss(Z, Z, backend="reference")
            assert served == ["reference"] * 2
        assert override() == "reference"
    assert override() == ""


def test_use_backend_is_undone_by_an_exception():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert override() == ""


def test_backward_is_served_by_the_same_backend_after_the_context(monkeypatch):
    module = resolve("reference", CPU, "self_lse")
    served = []
    original = module.self_lse_backward
    monkeypatch.setattr(module, "self_lse_backward", lambda *a: served.append(1) or original(*a))
    z = Z.clone().requires_grad_()
    with use_backend("reference"):
        loss = nt_xent_loss(z, Z)
    loss.backward()
    assert served == [1]


def test_compiled_code_follows_use_backend():
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: nt_xent_loss(z, z.flip(0)), fullgraph=True, backend="eager")
    with use_backend("reference"):
        expected = compiled(Z)
    missing = [name for name, reason in status().items() if reason]
    for name in missing[:1]:
        with use_backend(name), pytest.raises(Exception, match="cannot serve"):
            compiled(Z)
    torch.testing.assert_close(compiled(Z), expected)


def test_falling_back_to_the_reference_is_said_once_and_aloud():
    code = """
import warnings, torch
from ssl_kernels import backends, nt_xent_loss
backends.ORDER["cpu"] = ("cuda", "reference")
z = torch.randn(4, 3)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    nt_xent_loss(z, z), nt_xent_loss(z, z)
print(*[w.message for w in seen], sep="\\n")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert out.count("served by the slow reference backend") == 1 and "cuda: " in out


def test_a_device_nobody_serves():
    with pytest.raises(ValueError, match="^no backend serves meta tensors"):
        resolve("", torch.device("meta"), "self_lse")
    with pytest.raises(ValueError, match="backend='reference' cannot serve meta tensors: it serves cpu"):
        resolve("reference", torch.device("meta"), "self_lse")


def test_importing_the_package_loads_no_other_backend():
    code = "import sys, ssl_kernels; print([m for m in sys.modules if m.startswith('ssl_kernels.backends.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert out.strip() == "[]"
