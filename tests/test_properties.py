"""Properties of NT-Xent that hold for any input, and a search for inputs where they do not."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_kernels import backends, nt_xent_loss, nt_xent_reference
from ssl_kernels.testing import evaluate

FASTEST = next(name for name in backends.ORDER["cpu"] if backends.status()[name] is None)

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 90)
widths = st.integers(1, 140)
temperatures = st.one_of(st.floats(0.01, 10), st.floats(-10, -0.01))
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def fused(**inputs):
    return nt_xent_loss(**inputs, backend=FASTEST)


def draw(seed: int, n: int, d: int, temperature: float) -> dict:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return {"z1": z1, "z2": z2, "temperature": temperature}


def assert_alike(got, expected, temperature: float, **maps) -> None:
    """Equal to rounding; ``maps`` carries a gradient of ``expected`` over to the inputs that ``got`` was given."""
    tolerance = 1e-13 * (1 + 1 / abs(temperature) ** 2)
    assert abs(got.loss - expected.loss) <= tolerance * (1 + expected.loss)
    for name, carry in maps.items():
        theirs: Tensor = carry(expected)
        assert (got[name] - theirs).norm() <= tolerance * (1 + theirs.norm())


@given(seeds, sizes, widths, temperatures)
def test_the_order_of_the_samples_does_not_matter(seed, n, d, temperature):
    inputs = draw(seed, n, d, temperature)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = inputs | {"z1": inputs["z1"][order], "z2": inputs["z2"][order]}
    got, expected = evaluate(fused, shuffled), evaluate(fused, inputs)
    assert_alike(got, expected, temperature, z1=lambda r: r["z1"][order], z2=lambda r: r["z2"][order])


@given(seeds, sizes, widths, temperatures)
def test_the_order_of_the_views_does_not_matter(seed, n, d, temperature):
    inputs = draw(seed, n, d, temperature)
    swapped = inputs | {"z1": inputs["z2"], "z2": inputs["z1"]}
    got, expected = evaluate(fused, swapped), evaluate(fused, inputs)
    assert_alike(got, expected, temperature, z1=lambda r: r["z2"], z2=lambda r: r["z1"])


@given(seeds, st.integers(1, 60), st.integers(1, 40), temperatures)
def test_rotating_the_space_rotates_the_gradients(seed, n, d, temperature):
    inputs = draw(seed, n, d, temperature)
    generator = torch.Generator().manual_seed(seed + 1)
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]
    turned = inputs | {"z1": inputs["z1"] @ rotation, "z2": inputs["z2"] @ rotation}
    got, expected = evaluate(fused, turned), evaluate(fused, inputs)
    assert_alike(got, expected, temperature, z1=lambda r: r["z1"] @ rotation, z2=lambda r: r["z2"] @ rotation)


@given(seeds, sizes, widths, temperatures, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_length_of_a_row_does_not_matter(seed, n, d, temperature, dtype):
    inputs = draw(seed, n, d, temperature)
    inputs = inputs | {k: inputs[k].to(dtype) for k in ("z1", "z2")}
    powers = torch.randint(-12, 13, (n, 1), generator=torch.Generator().manual_seed(seed))
    factors = torch.exp2(powers.double()).to(dtype)
    longer = inputs | {"z1": inputs["z1"] * factors, "z2": inputs["z2"] * factors}
    got, expected = evaluate(fused, longer), evaluate(fused, inputs)
    assert torch.equal(got.loss, expected.loss)  # powers of two round nothing
    for name in ("z1", "z2"):
        assert torch.equal(got[name] * factors, expected[name])


@given(seeds, sizes, widths, temperatures)
def test_gradients_are_orthogonal_to_the_rows(seed, n, d, temperature):
    inputs = draw(seed, n, d, temperature)
    got = evaluate(fused, inputs)
    for name in ("z1", "z2"):
        along = (got[name] * inputs[name]).sum(1)
        assert along.abs().max() <= 1e-13 * (1 + 1 / abs(temperature) ** 2)


@given(seeds, st.integers(1, 40), widths, temperatures)
def test_samples_given_twice(seed, n, d, temperature):
    inputs = draw(seed, n, d, temperature)
    twice = inputs | {k: inputs[k].repeat(2, 1) for k in ("z1", "z2")}
    assert_alike(evaluate(fused, twice), evaluate(nt_xent_reference, twice), temperature)


@given(seeds, sizes, widths, st.floats(0.05, 5), st.sampled_from([-2.0, 0.25, 8.0]))
def test_an_upstream_factor_multiplies_the_gradients(seed, n, d, temperature, factor):
    inputs = draw(seed, n, d, temperature)
    got, expected = evaluate(lambda **kw: factor * fused(**kw), inputs), evaluate(fused, inputs)
    for name in expected.names:
        assert torch.equal(got[name], factor * expected[name])


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
    dtypes,
)
def test_any_strides_give_the_same_bits(n, d, steps, offsets, transposed, dtype):
    generator = torch.Generator().manual_seed(n * 64 + d)
    shape = (n * steps[0] + offsets[0], d * steps[1] + offsets[1])
    store = torch.randn(shape[::-1] if transposed else shape, dtype=dtype, generator=generator)
    z = (store.T if transposed else store)[offsets[0] :: steps[0], offsets[1] :: steps[1]][:n, :d]
    assert z.shape == (n, d)
    other = torch.randn(n, d, dtype=dtype, generator=generator)
    assert torch.equal(fused(z1=other, z2=z), fused(z1=other, z2=z.contiguous()))
