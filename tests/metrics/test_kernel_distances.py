"""Maximum mean discrepancies against closed forms and scikit-learn."""

import math

import jax
import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from diffjax.metrics import (
    _samples,
    gaussian_mmd,
    kernel_distance,
    median_distance,
    polynomial_mmd,
)


def two_sets(n=60, m=50, d=5):
    generator = np.random.default_rng(0)
    return generator.standard_normal((n, d)), 1.3 * generator.standard_normal((m, d)) + 0.4


def unbiased(kernel, x, y):
    """MMD^2 written out: diagonals removed, divisors n(n-1)."""
    within = sum(
        (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))
    )
    return within - 2 * kernel(x, y).mean()


def test_polynomial_against_scikit_learn():
    x, y = two_sets()
    expected = unbiased(lambda a, b: polynomial_kernel(a, b, degree=3, coef0=1.0), x, y)
    np.testing.assert_allclose(polynomial_mmd(x, y), expected, rtol=1e-10)


def test_gaussian_against_scikit_learn():
    x, y = two_sets()

    def kernel(a, b):
        return np.mean(
            [rbf_kernel(a, b, gamma=1 / (2 * (c * 1.7) ** 2)) for c in (0.5, 1, 2)], axis=0
        )

    np.testing.assert_allclose(
        gaussian_mmd(x, y, bandwidth=1.7), unbiased(kernel, x, y), rtol=1e-10
    )


def test_blocks_change_nothing(monkeypatch):
    x, y = two_sets()
    whole = polynomial_mmd(x, y), gaussian_mmd(x, y)
    monkeypatch.setattr(_samples, "_BLOCK_ENTRIES", 7 * 60)
    np.testing.assert_allclose((polynomial_mmd(x, y), gaussian_mmd(x, y)), whole, rtol=1e-12)


def polynomial_closed_form(d, q):
    """E of the three kernels between N(0, I_d) and N(m, I_d), |m|^2 = q."""
    shifted = (
        1 + 3 * q / d + 3 * (q**2 + 2 * q + d) / d**2 + (q**3 + 6 * q**2 + 3 * q * d + 6 * q) / d**3
    )
    return shifted + (1 + 3 / d) - 2 * (1 + 3 * (q + d) / d**2)


def test_closed_form_values():
    np.testing.assert_allclose(polynomial_closed_form(2, 1.0), 4.625)
    np.testing.assert_allclose(polynomial_closed_form(64, 1.0), 0.04839, rtol=1e-4)


@pytest.mark.parametrize(("d", "tolerance"), [(2, 0.25), (64, 0.004)])
def test_polynomial_closed_form(d, tolerance):
    generator = np.random.default_rng(0)
    shift = np.full(d, 1 / math.sqrt(d))
    values = [
        polynomial_mmd(
            generator.standard_normal((1000, d)), generator.standard_normal((1000, d)) + shift
        )
        for _ in range(10)
    ]
    assert abs(np.mean(values) - polynomial_closed_form(d, 1.0)) < tolerance


def test_gaussian_closed_form():
    """One width: 2 (h^2/(h^2+2))^{d/2} (1 - exp(-q/(2(h^2+2)))), averaged over the three."""
    generator = np.random.default_rng(0)
    x, y = (
        generator.standard_normal((3000, 2)),
        generator.standard_normal((3000, 2)) + np.array([1.0, 0.0]),
    )
    widths = np.array([0.5, 1.0, 2.0]) ** 2
    terms = 2 * widths / (widths + 2) * (1 - np.exp(-1 / (2 * (widths + 2))))
    np.testing.assert_allclose(terms[1], 0.10235, rtol=1e-4)
    assert abs(gaussian_mmd(x, y, bandwidth=1.0) - terms.mean()) < 0.006


@pytest.mark.parametrize("mmd", [polynomial_mmd, gaussian_mmd])
def test_equal_distributions_average_to_zero(mmd):
    generator = np.random.default_rng(1)
    values = [mmd(*generator.standard_normal((2, 40, 8))) for _ in range(60)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))


def test_subsets_estimate_the_exact_value(key):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((400, 16)), generator.standard_normal((300, 16)) + 0.5
    result = kernel_distance(x, y, key, subsets=60, subset_size=100)
    exact = polynomial_mmd(x, y)
    assert abs(result.mean - exact) < 4 * result.std / math.sqrt(60)
    assert result == kernel_distance(x, y, jax.random.key(0), subsets=60, subset_size=100)
    assert result != kernel_distance(x, y, jax.random.key(1), subsets=60, subset_size=100)


def test_subsets_of_everything_are_exact(key):
    """Without replacement: a subset as large as the set is the set."""
    x, y = two_sets(40, 40)
    result = kernel_distance(x, y, key, subsets=2, subset_size=40)
    np.testing.assert_allclose(result.mean, polynomial_mmd(x, y), rtol=1e-10)
    assert result.std < 1e-12


def test_median_is_of_the_reference_alone():
    x, y = two_sets()
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(len(x)) for j in range(i)]
    np.testing.assert_allclose(median_distance(x), np.median(pairs))
    np.testing.assert_allclose(gaussian_mmd(x, y), gaussian_mmd(x, y, bandwidth=np.median(pairs)))


def test_bad_input_is_refused(key):
    x, y = two_sets()
    with pytest.raises(ValueError, match=r"subset_size=51.*the 50 that"):
        kernel_distance(x, y, key, subset_size=51)
    with pytest.raises(ValueError, match="subsets=0"):
        kernel_distance(x, y, key, subsets=0, subset_size=10)
    with pytest.raises(ValueError, match="reference sample has shape"):
        polynomial_mmd(x, y[:, :3])
    with pytest.raises(ValueError, match="at least 2 samples"):
        polynomial_mmd(x[:1], y)
    with pytest.raises(ValueError, match="must be positive"):
        gaussian_mmd(np.zeros((5, 2)), np.ones((5, 2)))
