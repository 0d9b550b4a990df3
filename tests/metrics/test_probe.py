"""The classifier probe on the digits: accuracy, reproducibility, and what its features see."""

import chex
import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffjax.metrics import (
    FeatureStatistics,
    accuracy,
    energy_distance,
    frechet_distance,
    frechet_distance_from_statistics,
    inception_score,
    precision_recall,
)
from diffjax.metrics.probe import ClassifierProbe, train_classifier


@pytest.fixture(scope="module")
def halves():
    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return [(images[part], digits.target[part]) for part in (order[:898], order[898:])]


@pytest.fixture(scope="module")
def probe(halves):
    return train_classifier(*halves[0], 10)


def test_accuracy_on_held_out_digits(probe, halves):
    images, labels = halves[1]
    assert accuracy(probe.logits(images), labels) > 0.975


def test_features_have_unit_mean_variance(probe, halves):
    features = probe.features(halves[0][0])
    assert features.shape == (898, 64)
    np.testing.assert_allclose(features.var(axis=0).mean(), 1.0, rtol=1e-5)


def test_scores_order_the_candidates(probe, halves):
    (train, _), (test, labels) = halves
    reference = probe.features(train)

    def distance(images):
        return frechet_distance(reference, probe.features(images))

    generator = np.random.default_rng(0)
    flat = train.reshape(898, -1)
    gaussian = generator.multivariate_normal(flat.mean(0), np.cov(flat.T), 900).clip(-1, 1)
    floor = distance(test)
    assert 0 < floor < 1.5
    assert distance(gaussian.reshape(-1, 8, 8, 1)) > 5 * floor
    assert distance(test[labels < 5]) > 10 * floor
    assert distance(generator.uniform(-1, 1, test.shape)) > 30 * floor

    assert 9.3 < inception_score(probe.logits(test), splits=1).mean <= 10
    assert inception_score(probe.logits(test[labels < 5]), splits=1).mean < 5.6
    precision, recall = precision_recall(reference, probe.features(test))
    assert min(precision, recall) > 0.8
    # What features overlook, pixels see: noise of 0.2 (of a range of 2) is invisible in neither.
    noisy = (test + 0.4 * generator.standard_normal(test.shape)).clip(-1, 1)
    assert energy_distance(train, noisy) > 10 * abs(energy_distance(train, test))


def test_training_is_reproducible_to_the_bit(halves):
    once, again = (train_classifier(*halves[0], 10, steps=60) for _ in range(2))
    chex.assert_trees_all_equal(again.variables, once.variables)
    assert again.scale == once.scale
    assert again.convention == once.convention


def test_probes_do_not_mix(probe, halves):
    images, labels = halves[0]
    other = train_classifier(images, labels, 10, seed=1)
    assert accuracy(other.logits(halves[1][0]), halves[1][1]) > 0.975
    with pytest.raises(ValueError, match="different conventions"):
        frechet_distance_from_statistics(
            FeatureStatistics.of(probe.features(images), probe.convention),
            FeatureStatistics.of(other.features(images), other.convention),
        )


def test_save_and_load(tmp_path, probe, halves):
    images = halves[1][0][:10]
    probe.save(tmp_path / "probe.npz")
    loaded = ClassifierProbe.load(tmp_path / "probe.npz")
    assert loaded.convention == probe.convention
    assert loaded.model == probe.model
    np.testing.assert_array_equal(loaded.features(images), probe.features(images))
    np.savez(tmp_path / "other.npz", mu=np.ones(2))
    with pytest.raises(ValueError, match="not a classifier probe"):
        ClassifierProbe.load(tmp_path / "other.npz")


@pytest.mark.parametrize(("batch", "number"), [(1, 10), (7, 70), (200, 300)])
def test_results_do_not_depend_on_the_batch(probe, halves, batch, number):
    images = halves[1][0][:300]
    parts = [probe.features(images[i : i + batch]) for i in range(0, number, batch)]
    whole = probe.features(images)[:number]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_bad_input_is_refused(probe, halves):
    images, labels = halves[0][0][:16], halves[0][1][:16]
    with pytest.raises(ValueError, match="expected floats"):
        probe.features((images * 127.5 + 127.5).astype(np.uint8))
    with pytest.raises(ValueError, match=r"trained on \(8, 8, 1\)"):
        probe.logits(np.zeros((2, 16, 16, 1), np.float32))
    with pytest.raises(ValueError, match="expected 0 to 4"):
        train_classifier(images, labels, 5)
    with pytest.raises(ValueError, match="expected integers"):
        train_classifier(images, labels[:3], 10)
    with pytest.raises(ValueError, match="or are all alike"):
        train_classifier(np.zeros_like(images), labels, 10)
    with pytest.raises(ValueError, match="steps=0"):
        train_classifier(images, labels, 10, steps=0)
