"""Scores from a classifier's verdict, and the counting of modes."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import as_labels, as_matrix, as_pair, distance_blocks

__all__ = [
    "InceptionScore",
    "ModeCoverage",
    "accuracy",
    "class_coverage",
    "inception_score",
    "mode_coverage",
]


class InceptionScore(NamedTuple):
    """Inception score over splits of the samples.

    Attributes:
        mean: Mean over the splits, between 1 and the number of classes.
        std: Standard deviation over the splits (divisor: number of splits).
    """

    mean: float
    std: float


class ModeCoverage(NamedTuple):
    """Which modes of a mixture the samples reach.

    Attributes:
        counts: Good samples of each mode, ``(modes,)``.
        covered: Number of modes with enough good samples.
        good: Fraction of the samples that are good.
        divergence: KL divergence (nats) of the good samples' mode histogram to the uniform one;
            infinite when there are none.
    """

    counts: np.ndarray
    covered: int
    good: float
    divergence: float


def inception_score(logits: ArrayLike, *, splits: int = 10) -> InceptionScore:
    """Inception score (Salimans et al. 2016, arXiv 1606.03498): ``exp(E KL(p(y|x) || p(y)))``.

    Per split, in the order given (shuffle samples that are sorted by class), then averaged. The
    published scores use 10 splits of 50,000 samples, and logits without the layer's bias.

    Args:
        logits: ``(n, classes)``.
        splits: Number of nearly equal consecutive parts.

    Returns:
        Mean and standard deviation over the splits.

    Raises:
        ValueError: Logits unusable, fewer than two classes, or more splits than samples.
    """
    logits = as_matrix(logits, "logits", minimum=1)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: at least 2 classes are needed, got shape {logits.shape}")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits={splits} must lie between 1 and the {len(logits)} samples")
    # Logarithms throughout: an underflown probability times its log is 0, not NaN.
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    scores = []
    for part in np.array_split(log_p, splits):
        log_marginal = np.logaddexp.reduce(part, axis=0) - math.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - log_marginal)).sum(axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def accuracy(logits: ArrayLike, labels: ArrayLike, *, top: int = 1) -> float:
    """Fraction of samples whose label is among the ``top`` largest logits.

    With a classifier trained on generated samples and tested on real ones this is the
    classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887); the reverse judges
    whether samples show their requested labels.

    Args:
        logits: ``(n, classes)``.
        labels: Integers ``(n,)``.
        top: How many guesses count.

    Returns:
        The accuracy, in ``[0, 1]``. Ties count as misses.

    Raises:
        ValueError: Labels do not fit the logits, or ``top`` is out of range.
    """
    logits = as_matrix(logits, "logits", minimum=1)
    labels = as_labels(labels, len(logits), logits.shape[1])
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top={top} must lie between 1 and the {logits.shape[1]} classes")
    chosen = logits[np.arange(len(logits)), labels]
    # The chosen logit itself is one of those not below it.
    rank = (logits >= chosen[:, None]).sum(axis=1)
    return float((rank <= top).mean())


def mode_coverage(
    samples: ArrayLike,
    centres: ArrayLike,
    std: float,
    *,
    radius: float = 3.0,
    share: float = 0.0,
) -> ModeCoverage:
    """Counts the modes of a mixture of equal Gaussians that samples reach.

    A sample is good if it lies within ``radius`` standard deviations of its nearest centre, and
    then belongs to that mode.

    Args:
        samples: ``(n, d)``.
        centres: ``(modes, d)``.
        std: Standard deviation of a mode, per dimension.
        radius: In standard deviations.
        share: A mode is covered if it owns more than this fraction of its fair share
            ``n / modes`` of good samples; 0 asks for one sample.

    Returns:
        Counts, number covered, fraction good, and divergence from uniform.

    Raises:
        ValueError: Dimensions differ, ``std`` or ``radius`` is not positive, or values are not
            finite.
    """
    centres, samples = as_pair(centres, samples, minimum=1)
    if not (std > 0 and radius > 0):
        raise ValueError(f"std={std} and radius={radius} must be positive")
    modes = np.empty(len(samples), np.int64)
    good = np.empty(len(samples), bool)
    for rows, squared in distance_blocks(samples, centres):
        modes[rows] = squared.argmin(axis=1)
        good[rows] = squared.min(axis=1) <= (radius * std) ** 2
    return _coverage(np.bincount(modes[good], minlength=len(centres)), len(samples), share)


def class_coverage(labels: ArrayLike, classes: int, *, share: float = 0.0) -> ModeCoverage:
    """Counts the classes that samples reach, by the labels a classifier gives them.

    StackedMNIST: one label out of 1000, the three channels' digits together.

    Args:
        labels: Integers ``(n,)`` in ``[0, classes)``.
        classes: Number of classes.
        share: As in ``mode_coverage``.

    Returns:
        Counts, number covered, 1, and divergence from uniform.

    Raises:
        ValueError: No labels, not integers, or out of range.
    """
    labels = as_labels(labels, np.size(labels), classes)
    if not len(labels):
        raise ValueError("labels: at least one is needed")
    return _coverage(np.bincount(labels, minlength=classes), len(labels), share)


def _coverage(counts: np.ndarray, total: int, share: float) -> ModeCoverage:
    good = int(counts.sum())
    used = counts[counts > 0] / max(1, good)
    return ModeCoverage(
        counts=counts,
        covered=int((counts > share * total / len(counts)).sum()),
        good=good / total,
        divergence=float((used * np.log(used * len(counts))).sum()) if good else math.inf,
    )
