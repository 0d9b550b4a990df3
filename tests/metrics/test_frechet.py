"""Frechet distances against closed forms, each other, and other ways of computing them."""

import math

import jax
import numpy as np
import pytest

from diffjax.metrics import (
    FeatureStatistics,
    frechet_bias,
    frechet_distance,
    frechet_distance_extrapolated,
    frechet_distance_from_statistics,
    intra_frechet_distances,
)


def gaussian(mean, covariance):
    return FeatureStatistics(np.asarray(mean, float), np.asarray(covariance, float), None, "c")


def random_features(seed, n, d):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) / d + seed


def test_shift_costs_its_square():
    shift = np.array([0.5, -1.0, 2.0])
    distance = frechet_distance_from_statistics(
        gaussian(np.zeros(3), np.eye(3)), gaussian(shift, np.eye(3))
    )
    np.testing.assert_allclose(distance, shift @ shift, rtol=1e-12)


def test_diagonal_covariances():
    """sum (s_i - r_i)^2: 1, 3 against 2, 0.5 gives 1 + 6.25."""
    distance = frechet_distance_from_statistics(
        gaussian([0, 0], np.diag([1.0, 9.0])), gaussian([0, 0], np.diag([4.0, 0.25]))
    )
    np.testing.assert_allclose(distance, 7.25, rtol=1e-12)


# The last two have fewer samples than features: covariances of rank 29 and less.
@pytest.mark.parametrize(("n", "m", "d"), [(500, 300, 8), (30, 30, 64), (30, 12, 64)])
def test_forms_agree(n, m, d):
    reference, samples = random_features(1, n, d), random_features(2, m, d)
    r, s = FeatureStatistics.of(reference, "c"), FeatureStatistics.of(samples, "c")
    # The non-symmetric form: real parts of the roots of the eigenvalues of the product.
    roots = np.sqrt(np.linalg.eigvals(r.covariance @ s.covariance).astype(complex)).real
    mean = r.mean - s.mean
    expected = mean @ mean + np.trace(r.covariance + s.covariance) - 2 * roots.sum()
    np.testing.assert_allclose(frechet_distance(reference, samples), expected, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance_from_statistics(r, s), expected, rtol=1e-6)


def test_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    reference, samples = random_features(1, 400, 6), random_features(2, 300, 6)
    c_r, c_s = np.cov(reference, rowvar=False), np.cov(samples, rowvar=False)
    mean = reference.mean(0) - samples.mean(0)
    root = np.real(linalg.sqrtm(c_r @ c_s))
    expected = mean @ mean + np.trace(c_r + c_s - 2 * root)
    np.testing.assert_allclose(frechet_distance(reference, samples), expected, rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(400, 6), (20, 32)])
def test_invariances(n, d):
    reference, samples = random_features(1, n, d), random_features(2, n, d)
    distance = frechet_distance(reference, samples)
    assert distance > 0
    np.testing.assert_allclose(frechet_distance(samples, reference), distance, rtol=1e-10)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    rotated = frechet_distance(reference @ rotation, samples @ rotation)
    np.testing.assert_allclose(rotated, distance, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(3 * reference, 3 * samples), 9 * distance)
    scale = np.trace(np.cov(reference, rowvar=False))
    assert frechet_distance(reference, reference) <= 1e-8 * scale
    statistics = FeatureStatistics.of(reference, "c")
    assert frechet_distance_from_statistics(statistics, statistics) <= 1e-6 * scale


@pytest.mark.parametrize(
    ("d", "n", "expected"), [(64, 1000, 2.208), (64, 500, 4.416), (2, 500, 0.014)]
)
def test_bias_of_the_unit_gaussian(d, n, expected):
    np.testing.assert_allclose(frechet_bias(np.eye(d), n, n), expected, rtol=1e-12)
    np.testing.assert_allclose(frechet_bias(np.eye(d), math.inf, n), expected / 2, rtol=1e-12)


def test_bias_is_what_finite_samples_show():
    """Unequal variances in a rotated frame, unequal numbers: the general formula, by simulation."""
    generator = np.random.default_rng(0)
    root = (
        np.diag(np.geomspace(0.2, 3.0, 16)) @ np.linalg.qr(generator.standard_normal((16, 16)))[0]
    )
    distances = [
        frechet_distance(
            generator.standard_normal((800, 16)) @ root, generator.standard_normal((500, 16)) @ root
        )
        for _ in range(40)
    ]
    np.testing.assert_allclose(np.mean(distances), frechet_bias(root.T @ root, 800, 500), rtol=0.06)


def test_bias_holds_down_to_as_many_samples_as_dimensions():
    generator = np.random.default_rng(0)
    distances = [frechet_distance(*generator.standard_normal((2, 32, 32))) for _ in range(60)]
    np.testing.assert_allclose(np.mean(distances), frechet_bias(np.eye(32), 32, 32), rtol=0.03)


def test_bias_of_a_degenerate_covariance():
    np.testing.assert_allclose(
        frechet_bias(np.diag([1.0, 1.0, 0.0]), 100, 100), frechet_bias(np.eye(2), 100, 100)
    )


def test_bias_refuses_bad_input():
    with pytest.raises(ValueError, match=r"expected \(d, d\)"):
        frechet_bias(np.zeros((2, 3)), 10, 10)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_bias(np.eye(2), 1, 10)


def test_extrapolation_removes_the_bias(key):
    """Two unit Gaussians at squared distance 0.25; 1000 samples in 32 dimensions add 0.3."""
    shift = np.full(32, 0.5 / math.sqrt(32))
    samples = np.random.default_rng(0).standard_normal((1000, 32))
    reference = gaussian(shift, np.eye(32))
    plain = frechet_distance_from_statistics(reference, FeatureStatistics.of(samples, "c"))
    extrapolated = frechet_distance_extrapolated(reference, samples, key)
    assert plain - 0.25 > 0.2
    assert abs(extrapolated - 0.25) < 0.06
    assert extrapolated == frechet_distance_extrapolated(reference, samples, jax.random.key(0))


def test_extrapolation_refuses_bad_input(key):
    reference = gaussian(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="at least 20 samples"):
        frechet_distance_extrapolated(reference, np.ones((19, 3)), key)
    with pytest.raises(ValueError, match="points=1"):
        frechet_distance_extrapolated(reference, np.ones((30, 3)), key, points=1)
    with pytest.raises(ValueError, match="3 and 4 features"):
        frechet_distance_extrapolated(reference, np.ones((30, 4)), key)


def test_intra_distances_see_swapped_labels():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 200)
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 7.0]])
    reference = centres[labels] + generator.standard_normal((600, 2))
    samples = centres[labels] + generator.standard_normal((600, 2))
    matched = intra_frechet_distances(reference, labels, samples, labels, classes=3)
    assert matched.shape == (3,)
    assert matched.max() < 0.1
    swapped = intra_frechet_distances(reference, labels, samples, (labels + 1) % 3, classes=3)
    np.testing.assert_allclose(swapped, [49.0, 25.0, 74.0], rtol=0.1)
    assert frechet_distance(reference, samples) < 0.1


def test_intra_distances_refuse_bad_labels():
    features = np.random.default_rng(0).standard_normal((6, 2))
    labels = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="samples: class 1 has 1 samples"):
        intra_frechet_distances(features, labels, features, [0, 0, 0, 0, 0, 1], classes=2)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        intra_frechet_distances(features, labels, features, labels + 1, classes=2)
    with pytest.raises(ValueError, match="reference_labels: expected integers"):
        intra_frechet_distances(features, labels / 2, features, labels, classes=2)


def test_bad_input_is_refused():
    good = np.random.default_rng(0).standard_normal((5, 3))
    with pytest.raises(ValueError, match=r"reference sample has shape \(3,\)"):
        frechet_distance(good, np.ones((5, 4)))
    with pytest.raises(ValueError, match="samples: at least 2 samples are needed, got 1"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match="samples: 1 of 5 samples hold NaN"):
        frechet_distance(good, np.where(np.arange(5)[:, None] == 2, np.nan, good))
    statistics = FeatureStatistics.of(good, "tensorflow")
    with pytest.raises(ValueError, match="different conventions"):
        frechet_distance_from_statistics(statistics, FeatureStatistics.of(good, "pytorch"))
    with pytest.raises(ValueError, match="samples: at least 2 samples"):
        frechet_distance_from_statistics(statistics, FeatureStatistics.of(good[:1], "tensorflow"))
