"""Frechet distances between feature distributions (FID, sFID and their kin).

Between Gaussians fitted to reference features R and sample features S::

    FD = |mu_R - mu_S|^2 + tr C_R + tr C_S - 2 tr (C_R C_S)^{1/2}

with covariances of divisor ``n - 1`` (Heusel et al. 2017, arXiv 1706.08500, eq. 6). It is a squared
distance already. Never a matrix square root: that of a near-singular product is unreliable.
"""

import math

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import as_labels, as_matrix, as_pair
from diffjax.metrics.statistics import FeatureStatistics, require_same_convention

__all__ = [
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_extrapolated",
    "frechet_distance_from_statistics",
    "intra_frechet_distances",
]


def frechet_distance(reference: ArrayLike, samples: ArrayLike) -> float:
    """Frechet distance from the features themselves; no covariance is ever formed.

    With the centred, scaled features ``A = (R - mu_R) / sqrt(n - 1)``, ``B`` likewise,
    ``tr (C_R C_S)^{1/2}`` is the nuclear norm of ``A B^T``, which is that of ``T_A T_B^T`` for the
    triangular factors of ``A`` and ``B``. Exact also for fewer samples than features.

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.

    Returns:
        The distance; it depends on ``n`` and ``m`` (see ``frechet_bias``).

    Raises:
        ValueError: Fewer than two samples, different dimensions, or values that are not finite.
    """
    reference, samples = as_pair(reference, samples)
    mean_r, factor_r = _mean_and_factor(reference)
    mean_s, factor_s = _mean_and_factor(samples)
    cross = np.linalg.svd(factor_r @ factor_s.T, compute_uv=False).sum()
    return _combine(mean_r - mean_s, np.sum(factor_r**2), np.sum(factor_s**2), cross)


def frechet_distance_from_statistics(
    reference: FeatureStatistics, samples: FeatureStatistics
) -> float:
    """Frechet distance where only means and covariances are known.

    ``tr (C_R C_S)^{1/2} = sum sqrt(eig(C_R^{1/2} C_S C_R^{1/2}))``, symmetric throughout, so that
    the result is always real.

    Args:
        reference: Statistics of ``d`` features.
        samples: Statistics of the same ``d`` features under the same convention.

    Returns:
        The distance.

    Raises:
        ValueError: The conventions or dimensions differ, or there are fewer than two samples.
    """
    require_same_convention(reference, samples)
    _require_covariance(reference, "reference")
    _require_covariance(samples, "samples")
    return _distance_to(reference, _root(reference.covariance), samples)


def frechet_distance_extrapolated(
    reference: FeatureStatistics, samples: ArrayLike, key: jax.Array, *, points: int = 15
) -> float:
    """Extrapolates the Frechet distance to infinitely many samples.

    The bias falls as ``1 / n``: fits ``FD(n) = a + b / n`` to random subsets of ``n`` samples, from
    a tenth of them to all, and returns ``a`` (Chong and Forsyth 2020, arXiv 1911.07023). What the
    reference's own finite size adds remains.

    Args:
        reference: Statistics of ``d`` features; ``samples`` must be of the same convention.
        samples: Features ``(m, ...)``.
        key: Chooses the subsets.
        points: Number of subset sizes.

    Returns:
        The intercept ``a``; its noise exceeds that of the plain distance, and it may be negative.

    Raises:
        ValueError: Fewer than 20 samples or two points, or features unlike the reference's.
    """
    samples = as_matrix(samples, "samples", minimum=20)
    if points < 2:
        raise ValueError(f"points={points}: a line needs at least 2")
    _require_covariance(reference, "reference")
    root = _root(reference.covariance)
    order = np.asarray(jax.random.permutation(key, len(samples)))
    sizes = np.linspace(len(samples) // 10, len(samples), points).astype(int)
    distances = []
    for index, size in enumerate(sizes):
        # Rolling the one permutation keeps subsets of different sizes from being nested.
        chosen = np.roll(order, -index * len(samples) // points)[:size]
        subset = FeatureStatistics.of(samples[chosen], reference.convention)
        require_same_convention(reference, subset)
        distances.append(_distance_to(reference, root, subset))
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def frechet_bias(covariance: ArrayLike, reference_count: float, sample_count: float) -> float:
    """Expected distance between two independent finite sets of one Gaussian.

    What noise alone costs, and so the score that a perfect model gets.

    To first order, with ``l`` the eigenvalues of the covariance::

        (1/n + 1/m) (sum_i l_i + sum_i l_i / 4 + sum_ij l_i l_j / (2 (l_i + l_j)))

    from the variance of the mean, and from the Wishart variance of the covariance in the Bures
    metric (derived here); for the unit covariance ``(1/n + 1/m) (d + d (d + 1) / 4)``. Simulated
    Gaussians agree within about 3 % as soon as there are as many samples as dimensions.

    Args:
        covariance: Of the true distribution, ``(d, d)``. One estimated from few samples (less than
            about ``10 d``) has eigenvalues too far apart, which gives too low a bias.
        reference_count: ``n``, or infinity for an exact reference.
        sample_count: ``m``, or infinity.

    Returns:
        The expected distance.

    Raises:
        ValueError: The covariance is not square or not finite, or a count is below 2.
    """
    covariance = as_matrix(covariance, "covariance", minimum=1)
    if covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: expected (d, d), got {covariance.shape}")
    if min(reference_count, sample_count) < 2:
        raise ValueError(f"counts must be at least 2, got {reference_count} and {sample_count}")
    values = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
    sums = values[:, None] + values
    pairs = np.divide(np.outer(values, values), sums, out=np.zeros_like(sums), where=sums > 0)
    return float((1 / reference_count + 1 / sample_count) * (1.25 * values.sum() + pairs.sum() / 2))


def intra_frechet_distances(
    reference: ArrayLike,
    reference_labels: ArrayLike,
    samples: ArrayLike,
    sample_labels: ArrayLike,
    *,
    classes: int,
) -> np.ndarray:
    """Frechet distance within each class; their mean is the intra-FID.

    Args:
        reference: Features ``(n, ...)``.
        reference_labels: Integers ``(n,)``.
        samples: Features ``(m, ...)``.
        sample_labels: Requested labels, integers ``(m,)``.
        classes: Number of classes.

    Returns:
        One distance a class, ``(classes,)``.

    Raises:
        ValueError: Labels do not fit, or a class has fewer than two samples on either side.
    """
    reference, samples = as_pair(reference, samples)
    reference_labels = as_labels(reference_labels, len(reference), classes, "reference_labels")
    sample_labels = as_labels(sample_labels, len(samples), classes, "sample_labels")
    for name, labels in (("reference", reference_labels), ("samples", sample_labels)):
        counts = np.bincount(labels, minlength=classes)
        if counts.min() < 2:
            raise ValueError(
                f"{name}: class {counts.argmin()} has {counts.min()} samples, at least 2 are needed"
            )
    return np.array(
        [
            frechet_distance(reference[reference_labels == label], samples[sample_labels == label])
            for label in range(classes)
        ]
    )


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a triangular T with ``T^T T`` the covariance."""
    mean = features.mean(axis=0)
    return mean, np.linalg.qr((features - mean) / math.sqrt(len(features) - 1), mode="r")


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _distance_to(
    reference: FeatureStatistics, root: np.ndarray, samples: FeatureStatistics
) -> float:
    """The distance, given ``root``, the symmetric square root of the reference's covariance."""
    product = root @ samples.covariance @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0.0)).sum()
    return _combine(
        reference.mean - samples.mean,
        np.trace(reference.covariance),
        np.trace(samples.covariance),
        cross,
    )


def _combine(difference: np.ndarray, trace_r: float, trace_s: float, cross: float) -> float:
    # A distance is not negative; only rounding, about 1e-15 of the traces, could make it so.
    return float(max(0.0, difference @ difference + trace_r + trace_s - 2 * cross))


def _require_covariance(statistics: FeatureStatistics, name: str) -> None:
    if statistics.count is not None and statistics.count < 2:
        raise ValueError(f"{name}: at least 2 samples are needed, got {statistics.count}")
