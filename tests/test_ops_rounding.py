"""The kernels' stand-ins for a division, against the correctly rounded one, bit for bit.

Quotients lie all over the range, and as close to where the result changes as float32 can say; reciprocals are off by
some units in the last place, as those of a device are.
"""

import numpy as np
import pytest
import torch

from snnzoo.ops import backends

if backends.named("triton").unavailable() is not None:
    pytest.skip("needs triton", allow_module_level=True)

import triton
import triton.language as tl

from snnzoo.ops import triton_kernels as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 1 << 16 if DEVICE == "cpu" else 1 << 10


@triton.jit
def units_kernel(r_ptr, q_ptr, scaled_ptr, reciprocal_ptr, out_ptr, levels, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    scaled, reciprocal = tl.load(scaled_ptr + i), tl.load(reciprocal_ptr + i)
    tl.store(out_ptr + i, kernels.nearest_units(tl.load(r_ptr + i), tl.load(q_ptr + i), scaled, reciprocal, levels))


@triton.jit
def power_kernel(r_ptr, theta_ptr, reciprocal_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r, reciprocal = tl.load(r_ptr + i), tl.load(reciprocal_ptr + i)
    tl.store(out_ptr + i, kernels.nearest_power(r, tl.load(theta_ptr + i), r * reciprocal))


def ulps_away(x, generator, most):
    """Floats up to `most` places from x."""
    steps = generator.integers(-most, most + 1, x.shape, dtype=np.int32)
    return (x.view(np.int32) + steps).view(np.float32)


def significands(count, generator):
    """In [1, 2): at random, with few bits set, and next to both ends."""
    drawn = generator.integers(0, 1 << 23, count)
    few = drawn & generator.integers(0, 1 << 23, count) & generator.integers(0, 1 << 23, count)
    low, high = generator.integers(0, 16, count), (1 << 23) - 1 - generator.integers(0, 16, count)
    chosen = np.choose(generator.integers(0, 4, count), [drawn, few, low, high])
    return (chosen.astype(np.int32) | 0x3F800000).view(np.float32)


def launch(kernel, *arrays):
    *arrays, settings = arrays
    tensors = [torch.from_numpy(array).to(DEVICE) for array in arrays]
    out = torch.empty_like(tensors[0])
    kernel[(out.numel() // BLOCK,)](*tensors, out, *settings, BLOCK=BLOCK, enable_fp_fusion=False)
    return out.cpu().numpy()


def assert_units(count, levels, generator):
    theta, power = (
        significands(count, generator) * np.float32(2) ** generator.integers(-8, 8, count).astype(np.float32),
        np.float32(0.7) ** generator.integers(0, 40, count).astype(np.float32),
    )
    q = theta * power
    wholes = generator.integers(-levels - 2, levels + 2, count).astype(np.float32)
    near = ulps_away((wholes + np.float32(0.5)) * q, generator, 3)
    anywhere = (generator.standard_normal(count).astype(np.float32) * np.float32(levels)) * q
    r = np.where(generator.random(count) < 0.8, near, anywhere).astype(np.float32)
    r[:: 1 << 10] = 0.0
    reciprocal = ulps_away(np.float32(1) / theta, generator, 4)
    scaled = r * ulps_away(np.float32(1) / power, generator, 4)
    want = np.clip(np.rint(r / q), -levels, levels)
    np.testing.assert_array_equal(launch(units_kernel, r, q, scaled, reciprocal, (float(levels),)), want)
    assert (want % 2 == 1).any() and (want == levels).any()  # noqa: PT018 - of a mixture


def assert_powers(count, generator):
    theta = significands(count, generator) * np.float32(2) ** generator.integers(-8, 8, count).astype(np.float32)
    border = np.float32(1.5) * np.float32(2) ** generator.integers(-40, 3, count).astype(np.float32)
    r = np.abs(ulps_away(border * theta, generator, 3))
    r[: count // 4] = np.abs(generator.standard_normal(count // 4)).astype(np.float32) * theta[: count // 4]
    reciprocal = ulps_away(np.float32(1) / theta, generator, 4)
    found = launch(power_kernel, r, theta, reciprocal, ())
    quotient = r / theta
    assert ((0.75 * found <= quotient) & (quotient < 1.5 * found)).all()
    assert (np.log2(found) % 1 == 0).all()


@pytest.mark.parametrize("levels", [1, 3, 7, 100, 1 << 16])
def test_units_are_those_of_a_correctly_rounded_quotient(levels):
    assert_units(BLOCK * (8 if DEVICE == "cpu" else 1 << 12), levels, np.random.default_rng(levels))


def test_powers_are_those_of_a_correctly_rounded_quotient():
    assert_powers(BLOCK * (8 if DEVICE == "cpu" else 1 << 12), np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_tens_of_millions_of_quotients(seed):
    generator = np.random.default_rng(1000 + seed)
    for levels in (1, 2, 3, 7, 15, 1 << 16):
        assert_units(BLOCK * 16, levels, generator)
    assert_powers(BLOCK * 16, generator)


def test_zero_and_what_is_not_finite():
    inf, nan = np.inf, np.nan
    r = np.resize(np.array([0.0, -0.0, inf, -inf, nan, 1e38, -1e38, 1e-44], np.float32), BLOCK)
    q = np.full(BLOCK, 0.3, np.float32)
    found = launch(units_kernel, r, q, r, np.float32(1) / q, (7.0,))
    np.testing.assert_array_equal(found[:8], [0, 0, 7, -7, nan, 7, -7, 0])
    assert launch(power_kernel, np.abs(r), q, np.float32(1) / q, ())[0] == 0
