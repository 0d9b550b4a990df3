"""Mean and covariance of features, gathered batch by batch.

Statistics are a pytree of host float64 arrays. They are built a batch at a time, merged across
hosts or interrupted runs, and carry the convention (network and preprocessing) that they were made
with, because the same name, FID, hides several incompatible ones.
"""

import dataclasses
import functools

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import as_matrix

__all__ = ["FeatureStatistics", "require_same_convention", "sized_name"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "covariance", "count"],
    meta_fields=["convention"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and unbiased covariance of ``count`` feature vectors.

    Example::

        statistics = FeatureStatistics.empty(2048, "tensorflow")
        for images in batches:
            statistics = statistics.add(features(images))

    Attributes:
        mean: ``(d,)``; zeros while there are no samples.
        covariance: ``(d, d)``, divisor ``count - 1``; zeros while there are fewer than two samples.
        count: Number of samples, or None for published statistics that do not record it.
        convention: Network and preprocessing behind the features. Only equal ones compare.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    convention: str

    @classmethod
    def empty(cls, dimension: int, convention: str) -> "FeatureStatistics":
        """Statistics of no samples at all, to start from."""
        return cls(np.zeros(dimension), np.zeros((dimension, dimension)), 0, convention)

    @classmethod
    def of(cls, features: ArrayLike, convention: str) -> "FeatureStatistics":
        """Statistics of a whole set at once.

        Args:
            features: ``(n, ...)``; trailing axes are flattened.
            convention: Network and preprocessing behind the features.

        Raises:
            ValueError: Empty, not a batch, or not finite.
        """
        matrix = as_matrix(features, "features", minimum=1)
        mean = matrix.mean(axis=0)
        centred = matrix - mean
        scatter = centred.T @ centred
        return cls(mean, scatter / max(1, len(matrix) - 1), len(matrix), convention)

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.mean.shape[0]

    def add(self, features: ArrayLike) -> "FeatureStatistics":
        """These statistics with one more batch ``(n, ...)`` taken in."""
        return self.merge(FeatureStatistics.of(features, self.convention))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together.

        With ``d = mu_b - mu_a``, ``mu = mu_a + (n_b / n) d`` and
        ``(n - 1) C = (n_a - 1) C_a + (n_b - 1) C_b + (n_a n_b / n) d d^T`` (Chan et al. 1979): no
        large sums are subtracted, so features far from zero lose no digits.

        Raises:
            ValueError: Conventions or dimensions differ, or a count is unknown.
        """
        require_same_convention(self, other)
        if self.count is None or other.count is None:
            raise ValueError(
                "statistics that do not record their number of samples cannot be merged; "
                "recompute them from the data"
            )
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        scatter = (
            max(0, self.count - 1) * self.covariance
            + max(0, other.count - 1) * other.covariance
            + np.outer(difference, difference * (self.count * other.count / count))
        )
        return FeatureStatistics(
            self.mean + difference * (other.count / count),
            scatter / max(1, count - 1),
            count,
            self.convention,
        )


def require_same_convention(reference: FeatureStatistics, samples: FeatureStatistics) -> None:
    """Refuses to compare statistics that do not belong together.

    Raises:
        ValueError: The conventions or the numbers of features differ.
    """
    if reference.convention != samples.convention:
        raise ValueError(
            f"statistics of different conventions do not compare: {reference.convention!r} and "
            f"{samples.convention!r}; recompute one of them"
        )
    if reference.dimension != samples.dimension:
        raise ValueError(
            f"statistics of {reference.dimension} and {samples.dimension} features do not compare"
        )


def sized_name(metric: str, count: int) -> str:
    """Names a score with its sample size, which it may not be compared across.

    Example::

        sized_name("fid", 50_000)  # 'fid50k'
        sized_name("fid", 898)     # 'fid898'
    """
    return f"{metric}{count // 1000}k" if count and count % 1000 == 0 else f"{metric}{count}"
