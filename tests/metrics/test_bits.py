"""Bits per dimension: exact cases and the bound of uniform dequantisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.metrics import bits_per_dim, density_bits_per_dim

SHAPE = (8, 8, 3)
VALUES = math.prod(SHAPE)


def test_uniform_pixels_cost_eight_bits():
    assert bits_per_dim(VALUES * math.log(256), SHAPE) == pytest.approx(8.0)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 256.0)])
def test_the_uniform_density_costs_eight_bits_on_any_range(low, high):
    log_density = -VALUES * math.log(high - low)
    bits = density_bits_per_dim(log_density, SHAPE, bin_width=(high - low) / 256)
    assert bits == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("bin_width", "offset"),
    [(2 / 256, 7.0), (1 / 256, 8.0), (1.0, 0.0), (2 / 255, math.log2(127.5))],
)
def test_offsets(bin_width, offset):
    assert density_bits_per_dim(0.0, (1,), bin_width=bin_width) == pytest.approx(offset)


def test_one_constant_byte_costs_nothing():
    """A density of 128 on the byte's bin of width 2/256."""
    assert density_bits_per_dim(math.log(128), (1,)) == pytest.approx(0.0)


def test_dequantised_density_bounds_the_entropy():
    """A density constant on bins attains the entropy; one that varies there lies above."""
    generator = np.random.default_rng(0)
    levels = np.arange(256)
    weights = np.exp(-(((levels - 90) / 2.0) ** 2) / 2)
    p = weights / weights.sum()
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
    x = generator.choice(256, 200_000, p=p)
    y = 2 * (x + generator.uniform(size=x.shape)) / 256 - 1
    # Density of N(90.5, 2^2) in units of levels, seen on [-1, 1).
    centre, std = 2 * 90.5 / 256 - 1, 2 * 2.0 / 256
    log_density = -(((y - centre) / std) ** 2) / 2 - math.log(std * math.sqrt(2 * math.pi))
    bits = density_bits_per_dim(log_density, (1,)).mean()
    exact = density_bits_per_dim(np.log(p[x] * 128), (1,)).mean()
    assert exact == pytest.approx(entropy, abs=0.01)
    assert entropy < bits < entropy + 0.05


def test_works_under_transformations():
    log_density = jnp.array([-3.0, 5.0])
    bits = jax.jit(lambda x: density_bits_per_dim(x, SHAPE))(log_density)
    np.testing.assert_allclose(bits, -np.array([-3.0, 5.0]) / (VALUES * math.log(2)) + 7, rtol=1e-6)
    gradient = jax.grad(lambda x: bits_per_dim(x, SHAPE))(1.0)
    np.testing.assert_allclose(gradient, 1 / (VALUES * math.log(2)), rtol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bits_per_dim(1.0, (0, 3))
    with pytest.raises(ValueError, match="bin_width=0"):
        density_bits_per_dim(1.0, SHAPE, bin_width=0)
