"""Precision, recall, realism, density and coverage: known cases and brute force."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from diffjax.metrics import (
    PrecisionRecall,
    _samples,
    density_coverage,
    nearest_radii,
    precision_recall,
    realism,
)


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def brute_force(reference, samples, k):
    radii = NearestNeighbors(n_neighbors=k + 1).fit(reference).kneighbors(reference)[0][:, k]
    distances = np.linalg.norm(reference[:, None] - samples[None], axis=-1)
    return distances <= radii[:, None] * (1 + 1e-9), distances, radii


@pytest.mark.parametrize("k", [1, 3, 5])
def test_radii_against_scikit_learn(k):
    samples = normal(0, 150, 6)
    expected = NearestNeighbors(n_neighbors=k + 1).fit(samples).kneighbors(samples)[0][:, k]
    np.testing.assert_allclose(nearest_radii(samples, k), expected, rtol=1e-10)


def test_duplicates_shrink_radii_to_zero_exactly():
    samples = np.repeat(normal(0, 10, 3) + 1e3, 4, axis=0)
    np.testing.assert_array_equal(nearest_radii(samples, 3), 0.0)
    assert nearest_radii(samples, 4).min() > 0


@pytest.mark.parametrize("entries", [2**22, 11 * 80])
def test_against_brute_force(monkeypatch, entries):
    monkeypatch.setattr(_samples, "_BLOCK_ENTRIES", entries)
    reference, samples = normal(0, 80, 3), 1.3 * normal(1, 60, 3)
    inside, distances, radii = brute_force(reference, samples, 3)
    recalled, _, _ = brute_force(samples, reference, 3)
    assert precision_recall(reference, samples) == (inside.any(0).mean(), recalled.any(0).mean())
    density, coverage = density_coverage(reference, samples, k=3)
    assert density == inside.sum() / (3 * 60)
    assert coverage == inside.any(1).mean()
    depth = radii[:, None] / (distances + 1e-5)
    np.testing.assert_allclose(realism(reference, samples, keep=1.0), depth.max(0), rtol=1e-8)
    smaller = depth[radii <= np.median(radii)]
    np.testing.assert_allclose(realism(reference, samples), smaller.max(0), rtol=1e-8)


@pytest.mark.parametrize("duplicates", [1, 2])
def test_a_set_scores_one_on_itself(duplicates):
    samples = np.repeat(normal(0, 100, 16) + 50.0, duplicates, axis=0)
    assert precision_recall(samples, samples) == (1.0, 1.0)
    assert density_coverage(samples, samples).coverage == 1.0


def test_density_of_a_copy_counts_surfaces():
    """Each of n balls holds k + 1 samples of the copy: its centre, and one on its surface."""
    samples = normal(0, 100, 4)
    np.testing.assert_allclose(density_coverage(samples, samples, k=5).density, 6 / 5)


@pytest.mark.parametrize(("d", "ceiling"), [(2, 0.98), (16, 0.79), (64, 0.63)])
def test_the_ceiling_is_not_one(d, ceiling):
    result = precision_recall(normal(0, 1000, d), normal(1, 1000, d))
    np.testing.assert_allclose(result, ceiling, atol=0.04)


def ring(seed, modes, n):
    generator = np.random.default_rng(seed)
    angle = 2 * np.pi * generator.integers(0, modes, n) / 8
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * generator.standard_normal((n, 2))


def test_missing_modes_cost_recall():
    result = precision_recall(ring(0, 8, 1000), ring(1, 4, 1000))
    np.testing.assert_allclose(result, (0.97, 0.49), atol=0.04)


@pytest.mark.parametrize(("scale", "expected"), [(0.3, (0.99, 0.53)), (3.0, (0.51, 0.99))])
def test_shrinking_costs_recall_and_stretching_precision(scale, expected):
    result = precision_recall(normal(0, 1000, 2), scale * normal(1, 1000, 2))
    np.testing.assert_allclose(result, expected, atol=0.05)


def test_precision_and_recall_swap_with_the_sets():
    reference, samples = normal(0, 100, 2), 2 * normal(1, 100, 2)
    assert precision_recall(reference, samples) == precision_recall(samples, reference)[::-1]


def test_density_is_robust_to_an_outlier():
    """One far reference sample makes a huge ball; precision believes it, density hardly."""
    reference = np.concatenate([normal(0, 300, 2), [[40.0, 0.0]]])
    samples = normal(1, 300, 2) + np.array([20.0, 0.0])
    assert precision_recall(reference, samples).precision > 0.3
    assert density_coverage(reference, samples).density < 0.25
    assert realism(reference, samples).max() < 1 < realism(reference, samples, keep=1.0).max()


def test_f_score():
    np.testing.assert_allclose(PrecisionRecall(0.5, 1.0).f_score, 2 / 3)
    assert PrecisionRecall(0.0, 0.0).f_score == 0.0


def test_bad_input_is_refused():
    x = normal(0, 5, 2)
    for function in (precision_recall, density_coverage, realism):
        with pytest.raises(ValueError, match=r"k=5 nearest neighbours.*reference has 5"):
            function(x, normal(1, 9, 2), k=5)
    with pytest.raises(ValueError, match="samples has 5"):
        precision_recall(normal(1, 9, 2), x, k=5)
    with pytest.raises(ValueError, match="k=0"):
        nearest_radii(x, 0)
    with pytest.raises(ValueError, match="keep=0"):
        realism(x, x, keep=0)
    with pytest.raises(ValueError, match="NaN"):
        precision_recall(x, np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="reference sample has shape"):
        density_coverage(x, normal(0, 5, 3))
