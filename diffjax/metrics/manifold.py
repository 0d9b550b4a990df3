"""Fidelity and diversity by nearest neighbours: precision, recall, realism, density, coverage.

A set's manifold is the union of balls ``B(a, r_k(a))``, where ``r_k(a)`` is the distance from ``a``
to its ``k``-th nearest neighbour in the set, itself excluded. Even two halves of the same data do
not reach 1: compare with that ceiling.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import (
    as_matrix,
    as_pair,
    distance_blocks,
    require_neighbours,
)

__all__ = [
    "DensityCoverage",
    "PrecisionRecall",
    "density_coverage",
    "nearest_radii",
    "precision_recall",
    "realism",
]

# On squared radii: copies of a sample lie exactly on surfaces, rounding must not put them outside.
_SLACK = 1 + 1e-9
_REALISM_EPSILON = 1e-5


class PrecisionRecall(NamedTuple):
    """Improved precision and recall.

    Attributes:
        precision: Fraction of the samples inside the reference's manifold.
        recall: Fraction of the reference inside the samples' manifold.
    """

    precision: float
    recall: float

    @property
    def f_score(self) -> float:
        """``2 P R / (P + R)``, and 0 when both are."""
        return 2 * self.precision * self.recall / max(1e-5, self.precision + self.recall)


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
        density: Mean number of reference balls around a sample, over ``k``; about 1 for a perfect
            model, and may exceed 1.
        coverage: Fraction of the reference whose ball holds at least one sample.
    """

    density: float
    coverage: float


def nearest_radii(samples: ArrayLike, k: int = 3) -> np.ndarray:
    """Distance from each sample to its ``k``-th nearest neighbour, itself excluded.

    Args:
        samples: ``(n, ...)``; trailing axes are flattened. Duplicates are neighbours at distance 0.
        k: Which neighbour, ``1 <= k < n``.

    Returns:
        Radii ``(n,)``.

    Raises:
        ValueError: ``k`` is out of range, or samples are unusable.
    """
    return np.sqrt(_squared_radii(as_matrix(samples, "samples"), k, "samples"))


def precision_recall(reference: ArrayLike, samples: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1-2).

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.
        k: Neighbour that sets the radii.

    Returns:
        Precision (samples in balls of the reference, surface included) and recall (the reverse).

    Raises:
        ValueError: ``k`` is not below both numbers of samples, dimensions differ, or values are
            not finite.
    """
    reference, samples = as_pair(reference, samples)
    radii_r = _SLACK * _squared_radii(reference, k, "reference")
    radii_s = _SLACK * _squared_radii(samples, k, "samples")
    precise = np.zeros(len(samples), bool)
    recalled = np.zeros(len(reference), bool)
    for rows, squared in distance_blocks(samples, reference):
        precise[rows] = (squared <= radii_r).any(axis=1)
        recalled |= (squared <= radii_s[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def density_coverage(reference: ArrayLike, samples: ArrayLike, *, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797), robust to outliers.

    ``density = sum_j #{i : S_j in ball(R_i)} / (k m)``;
    ``coverage = #{i : some S_j in ball(R_i)} / n``. Only balls of the reference count.

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.
        k: Neighbour that sets the radii.

    Returns:
        Density and coverage.

    Raises:
        ValueError: ``k`` is not below ``n``, dimensions differ, or values are not finite.
    """
    reference, samples = as_pair(reference, samples)
    radii = _SLACK * _squared_radii(reference, k, "reference")
    inside = np.zeros(len(reference), np.int64)
    for _, squared in distance_blocks(samples, reference):
        inside += (squared <= radii).sum(axis=0)
    return DensityCoverage(float(inside.sum() / (k * len(samples))), float((inside > 0).mean()))


def realism(
    reference: ArrayLike, samples: ArrayLike, *, k: int = 3, keep: float = 0.5
) -> np.ndarray:
    """How deep each sample lies inside the reference's manifold.

    ``realism(s) = max_i r_k(R_i) / (|s - R_i| + 1e-5)`` over the smallest balls; at least 1 inside
    one (Kynkäänniemi et al. 2019, eq. 3).

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.
        k: Neighbour that sets the radii.
        keep: Fraction of the balls that count, smallest first. The paper drops the larger half,
            because outliers have huge balls; 1 keeps all.

    Returns:
        Realism ``(m,)``.

    Raises:
        ValueError: ``k`` or ``keep`` is out of range, dimensions differ, or values are not finite.
    """
    reference, samples = as_pair(reference, samples, minimum=1)
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]")
    radii = np.sqrt(_squared_radii(reference, k, "reference"))
    kept = radii <= np.quantile(radii, keep)
    reference, radii = reference[kept], radii[kept]
    scores = np.empty(len(samples))
    for rows, squared in distance_blocks(samples, reference):
        scores[rows] = (radii / (np.sqrt(squared) + _REALISM_EPSILON)).max(axis=1)
    return scores


def _squared_radii(x: np.ndarray, k: int, name: str) -> np.ndarray:
    require_neighbours(k, len(x), name)
    radii = np.empty(len(x))
    for rows, squared in distance_blocks(x, x):
        # Entry 0 of a sorted row is the sample itself, at distance 0; entry k its k-th neighbour.
        radii[rows] = np.partition(squared, k, axis=1)[:, k]
    return radii
