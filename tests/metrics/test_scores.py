"""Inception score, accuracy and mode counting."""

import math

import jax
import numpy as np
import pytest

from diffjax.metrics import accuracy, class_coverage, inception_score, mode_coverage


def test_uniform_one_hot_classes_score_their_number():
    logits = 1e4 * np.eye(10)[np.arange(200) % 10]  # all other probabilities underflow
    result = inception_score(logits, splits=4)
    np.testing.assert_allclose(result, (10.0, 0.0), rtol=1e-10, atol=1e-10)


def test_identical_rows_score_one():
    logits = np.tile(np.random.default_rng(0).standard_normal(7), (50, 1))
    np.testing.assert_allclose(inception_score(logits, splits=5), (1.0, 0.0), atol=1e-10)


def test_against_probabilities_written_out():
    logits = np.random.default_rng(0).standard_normal((90, 6)) * 2
    scores = []
    for part in np.split(np.asarray(jax.nn.softmax(logits, axis=1), float), 3):
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    result = inception_score(logits, splits=3)
    np.testing.assert_allclose(result, (np.mean(scores), np.std(scores)), rtol=1e-5)


def test_score_ignores_the_order_only_within_splits():
    logits = 1e4 * np.eye(4)[np.repeat(np.arange(4), 25)]  # sorted by class
    np.testing.assert_allclose(inception_score(logits, splits=4).mean, 1.0)
    np.testing.assert_allclose(inception_score(logits, splits=1).mean, 4.0)


def test_every_sample_counts():
    """Splits of unequal size, nothing dropped."""
    logits = np.zeros((11, 3))
    logits[-1, 0] = 50.0
    assert inception_score(logits, splits=3).mean > 1.0


def test_score_refuses_bad_input():
    with pytest.raises(ValueError, match=r"splits=5.*the 4 samples"):
        inception_score(np.zeros((4, 3)), splits=5)
    with pytest.raises(ValueError, match="NaN"):
        inception_score(np.array([[0.0, np.nan]]), splits=1)
    with pytest.raises(ValueError, match="at least 2 classes"):
        inception_score(np.zeros((4, 1)), splits=1)


def test_accuracy():
    logits = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert accuracy(logits, [0, 1, 2]) == 1 / 3  # a tie is no answer
    assert accuracy(logits, [0, 1, 2], top=2) == 2 / 3
    assert accuracy(logits, [0, 1, 2], top=3) == 1.0
    with pytest.raises(ValueError, match="top=4"):
        accuracy(logits, [0, 1, 2], top=4)
    with pytest.raises(ValueError, match=r"expected integers of shape \(3,\)"):
        accuracy(logits, [0, 1])
    with pytest.raises(ValueError, match="expected 0 to 2, got 0 to 3"):
        accuracy(logits, [0, 1, 3])


CENTRES = np.array([[x, y] for x in range(-2, 3) for y in range(-2, 3)], float)


def test_a_perfect_model_covers_all_25_gaussians():
    generator = np.random.default_rng(0)
    samples = CENTRES[np.arange(5000) % 25] + 0.05 * generator.standard_normal((5000, 2))
    result = mode_coverage(samples, CENTRES, 0.05)
    assert result.covered == 25
    assert result.counts.sum() == round(result.good * 5000)
    # In 2-D, 1 - exp(-9/2) of the mass lies within three standard deviations.
    np.testing.assert_allclose(result.good, 1 - math.exp(-4.5), atol=0.006)
    assert result.divergence < 1e-3


def test_coverage_counts_share_and_divergence():
    samples = np.concatenate([np.tile(CENTRES[3], (98, 1)), CENTRES[[7]], [[0.5, 0.5]]])
    result = mode_coverage(samples, CENTRES, 0.1)
    assert (result.counts[3], result.counts[7], result.covered) == (98, 1, 2)
    assert result.good == 0.99
    p = np.array([98, 1]) / 99
    np.testing.assert_allclose(result.divergence, (p * np.log(p * 25)).sum())
    # A tenth of the fair share is 0.4 samples of 100; half of it 2.
    assert mode_coverage(samples, CENTRES, 0.1, share=0.1).covered == 2
    assert mode_coverage(samples, CENTRES, 0.1, share=0.5).covered == 1
    assert mode_coverage(samples, CENTRES, 0.1, radius=8.0).good == 1.0


def test_no_good_sample_at_all():
    result = mode_coverage(np.full((4, 2), 0.5), CENTRES, 0.01)
    assert (result.covered, result.good, result.divergence) == (0, 0.0, math.inf)


def test_class_coverage():
    result = class_coverage(np.array([0, 0, 1, 1]), 4)
    np.testing.assert_array_equal(result.counts, [2, 2, 0, 0])
    assert (result.covered, result.good) == (2, 1.0)
    np.testing.assert_allclose(result.divergence, math.log(2))
    np.testing.assert_allclose(class_coverage(np.arange(1000), 1000).divergence, 0.0, atol=1e-12)


def test_coverage_refuses_bad_input():
    with pytest.raises(ValueError, match="must be positive"):
        mode_coverage(CENTRES, CENTRES, 0.0)
    with pytest.raises(ValueError, match="reference sample has shape"):
        mode_coverage(np.zeros((4, 3)), CENTRES, 0.1)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        class_coverage(np.array([4]), 4)
    with pytest.raises(ValueError, match="at least one"):
        class_coverage(np.array([], int), 4)
