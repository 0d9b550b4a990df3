"""Feature statistics: batches, merging, conventions, and the pytree form."""

import jax
import numpy as np
import pytest

from diffjax.metrics import FeatureStatistics, require_same_convention, sized_name


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    return generator.standard_normal((250, 7)) @ generator.standard_normal((7, 7)) + 3.0


def assert_same(left, right, rtol=1e-12):
    np.testing.assert_allclose(left.mean, right.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(left.covariance, right.covariance, rtol=rtol, atol=rtol)
    assert (left.count, left.convention) == (right.count, right.convention)


def test_of_is_the_unbiased_covariance(features):
    statistics = FeatureStatistics.of(features, "c")
    np.testing.assert_allclose(statistics.mean, features.mean(0))
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False))
    assert statistics.count == 250
    assert statistics.dimension == 7


@pytest.mark.parametrize("batch", [1, 7, 64, 250])
def test_batches_add_up_to_the_whole(features, batch):
    statistics = FeatureStatistics.empty(7, "c")
    for start in range(0, len(features), batch):
        statistics = statistics.add(features[start : start + batch])
    assert_same(statistics, FeatureStatistics.of(features, "c"))


def test_merge_is_commutative_and_associative(features):
    a, b, c = (FeatureStatistics.of(part, "c") for part in np.split(features, [30, 31]))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(FeatureStatistics.empty(7, "c")), a)
    assert FeatureStatistics.empty(7, "c").merge(FeatureStatistics.empty(7, "c")).count == 0


def test_a_large_mean_costs_no_digits(features):
    """sum x x^T - n mu mu^T would be left with no digit at all here."""
    shifted = FeatureStatistics.empty(7, "c")
    for part in np.array_split(features + 1e7, 10):
        shifted = shifted.add(part)
    np.testing.assert_allclose(shifted.covariance, np.cov(features, rowvar=False), rtol=1e-6)


def test_device_arrays_and_trailing_axes(features):
    images = jax.numpy.asarray(features, "float32").reshape(250, 7, 1)
    statistics = FeatureStatistics.of(images, "c")
    assert statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-4)


def test_is_a_pytree_with_a_static_convention(features):
    statistics = FeatureStatistics.of(features, "c")
    leaves, structure = jax.tree.flatten(statistics)
    assert len(leaves) == 3
    assert_same(jax.tree.unflatten(structure, leaves), statistics)
    assert structure != jax.tree.structure(FeatureStatistics.of(features, "other"))


def test_what_does_not_belong_together_is_refused(features):
    statistics = FeatureStatistics.of(features, "tensorflow")
    with pytest.raises(ValueError, match="'tensorflow' and 'clean'"):
        statistics.merge(FeatureStatistics.of(features, "clean"))
    with pytest.raises(ValueError, match="7 and 6 features"):
        require_same_convention(statistics, FeatureStatistics.of(features[:, :6], "tensorflow"))
    unknown = FeatureStatistics(statistics.mean, statistics.covariance, None, "tensorflow")
    with pytest.raises(ValueError, match="do not record their number"):
        unknown.add(features)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), "expected an array"),
        (np.zeros((0, 5)), "at least 1 samples"),
        (np.zeros((5, 0)), "no features"),
        (np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]]), "2 of 3 samples.*index 1"),
    ],
)
def test_unusable_features_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.of(array, "c")


@pytest.mark.parametrize(
    ("count", "name"), [(50_000, "fid50k"), (2048, "fid2048"), (898, "fid898"), (1000, "fid1k")]
)
def test_sized_name(count, name):
    assert sized_name("fid", count) == name
