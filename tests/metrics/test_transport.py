"""Energy, Wasserstein and neighbour distances against closed forms, SciPy and scikit-learn."""

import math

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from diffjax.metrics import (
    _samples,
    energy_distance,
    nearest_neighbours,
    sliced_wasserstein,
    wasserstein_1d,
)


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def energy_closed_form(shift):
    """Between N(0, 1) and N(shift, 1)."""
    cross = 2 * math.exp(-(shift**2) / 4) / math.sqrt(math.pi)
    cross += shift * (1 - 2 * stats.norm.cdf(-shift / math.sqrt(2)))
    return 2 * cross - 4 / math.sqrt(math.pi)


@pytest.mark.parametrize(("shift", "value"), [(0.5, 0.1396), (1.0, 0.5418), (2.0, 1.9443)])
def test_energy_closed_form(shift, value):
    np.testing.assert_allclose(energy_closed_form(shift), value, atol=1e-4)
    # Normal quantiles are a sample without noise.
    grid = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None]
    np.testing.assert_allclose(energy_distance(grid, grid + shift), value, atol=3e-3)


def test_energy_against_scipy():
    """SciPy's is the root of the V-statistic, whose diagonals count as zero distances."""
    x, y = normal(0, 40, 1), 1.5 * normal(1, 30, 1) + 0.3
    within = [np.abs(z - z.T).sum() for z in (x, y)]
    difference = within[0] * (1 / (40 * 39) - 1 / 40**2) + within[1] * (1 / (30 * 29) - 1 / 30**2)
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2 - difference
    np.testing.assert_allclose(energy_distance(x, y), expected, rtol=1e-10)


def test_energy_of_equal_distributions_averages_to_zero():
    """d = 64, n = 1000: the V-statistic would have mean 0.0225."""
    values = [
        energy_distance(normal(2 * i, 1000, 64), normal(2 * i + 1, 1000, 64)) for i in range(5)
    ]
    assert max(np.abs(values)) < 0.006
    assert abs(np.mean(values)) < 0.003


def test_energy_does_not_depend_on_blocks_or_offset(monkeypatch):
    x, y = normal(0, 50, 3), normal(1, 70, 3) + 0.5
    whole = energy_distance(x, y)
    np.testing.assert_allclose(energy_distance(x + 1e6, y + 1e6), whole, rtol=1e-6)
    monkeypatch.setattr(_samples, "_BLOCK_ENTRIES", 9 * 50)
    np.testing.assert_allclose(energy_distance(x, y), whole, rtol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 30), (7, 40)])
def test_wasserstein_against_scipy(n, m):
    x, y = normal(0, n, 1), 2 * normal(1, m, 1) + 1
    np.testing.assert_allclose(
        wasserstein_1d(x, y), stats.wasserstein_distance(x[:, 0], y[:, 0]), rtol=1e-10
    )


def test_wasserstein_of_unequal_numbers_is_exact():
    """Repeating every sample changes no distribution."""
    x, y = normal(0, 12, 1), normal(1, 8, 1)
    common = wasserstein_1d(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0), order=2)
    np.testing.assert_allclose(wasserstein_1d(x, y, order=2), common, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_wasserstein_of_a_shift_is_the_shift(order):
    x = normal(0, 30, 1)
    np.testing.assert_allclose(wasserstein_1d(x, x + 0.7, order=order), 0.7, rtol=1e-12)


def test_sliced_shift(key):
    """|m|^2 / d, exactly per direction the squared projection of the shift."""
    x, shift = normal(0, 200, 8), np.linspace(-1, 1, 8)
    value = sliced_wasserstein(x, x + shift, key, directions=4000)
    np.testing.assert_allclose(value, shift @ shift / 8, rtol=0.05)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_sliced_scale(key, scale):
    x = normal(0, 4000, 4)
    value = sliced_wasserstein(x, scale * x, key, directions=200)
    np.testing.assert_allclose(value, (1 - scale) ** 2, rtol=0.05)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_sliced_null_depends_little_on_dimension(key, d):
    value = sliced_wasserstein(normal(0, 2000, d), normal(1, 2000, d), key, directions=200)
    np.testing.assert_allclose(value, 0.0035, atol=0.002)


def test_sliced_in_one_dimension_is_wasserstein(key):
    x, y = normal(0, 40, 1), normal(1, 60, 1) + 1
    np.testing.assert_allclose(
        sliced_wasserstein(x, y, key, directions=70), wasserstein_1d(x, y, order=2) ** 2
    )


def test_sliced_is_fixed_by_the_key(key):
    x, y = normal(0, 40, 5), normal(1, 40, 5)
    value = sliced_wasserstein(x, y, key, directions=20)
    assert value == sliced_wasserstein(x, y, jax.random.key(0), directions=20)
    assert value != sliced_wasserstein(x, y, jax.random.key(1), directions=20)
    np.testing.assert_allclose(sliced_wasserstein(x, x[::-1], key, directions=20), 0.0)


@pytest.mark.parametrize("entries", [2**22, 13 * 90])
def test_neighbours_against_scikit_learn(monkeypatch, entries):
    monkeypatch.setattr(_samples, "_BLOCK_ENTRIES", entries)
    reference, queries = normal(0, 90, 4), normal(1, 50, 4)
    distances, indices = NearestNeighbors(n_neighbors=3).fit(reference).kneighbors(queries)
    result = nearest_neighbours(reference, queries, k=3)
    np.testing.assert_allclose(result.distances, distances, rtol=1e-10)
    np.testing.assert_array_equal(result.indices, indices)


def test_neighbours_find_copies():
    reference = normal(0, 30, 8) + 100.0
    result = nearest_neighbours(reference, reference[[7, 3]])
    np.testing.assert_array_equal(result.indices, [[7], [3]])
    np.testing.assert_array_equal(result.distances, 0.0)
    everything = nearest_neighbours(reference, reference[:2], k=30)
    assert (np.diff(everything.distances, axis=1) >= 0).all()


def test_bad_input_is_refused(key):
    x = normal(0, 5, 2)
    with pytest.raises(ValueError, match="at least 2 samples"):
        energy_distance(x, x[:1])
    with pytest.raises(ValueError, match="expected an array"):
        energy_distance(np.zeros(5), np.zeros(5))
    with pytest.raises(ValueError, match="2 dimensions, not 1"):
        wasserstein_1d(x, x)
    with pytest.raises(ValueError, match="order=0"):
        wasserstein_1d(x[:, :1], x[:, :1], order=0)
    with pytest.raises(ValueError, match="directions=0"):
        sliced_wasserstein(x, x, key, directions=0)
    with pytest.raises(ValueError, match="1 of 5 samples hold NaN"):
        sliced_wasserstein(x, np.where(x == x[0, 0], np.nan, x), key)
    with pytest.raises(ValueError, match="k=6 neighbours"):
        nearest_neighbours(x, x, k=6)
