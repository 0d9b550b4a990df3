"""Distances between sets of samples that need no network: energy, Wasserstein, nearest neighbours.

They see noise, blur and wrong proportions in small data (points, digits) at once. None of them
needs a bandwidth or a fitted Gaussian.
"""

from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import (
    as_pair,
    distance_blocks,
    mean_between,
    mean_within,
)

__all__ = [
    "Neighbours",
    "energy_distance",
    "nearest_neighbours",
    "sliced_wasserstein",
    "wasserstein_1d",
]

_DIRECTION_BLOCK = 64  # projections are sorted this many at a time


class Neighbours(NamedTuple):
    """Nearest neighbours, closest first.

    Attributes:
        distances: Euclidean distances ``(queries, k)``.
        indices: Which reference sample, ``(queries, k)``.
    """

    distances: np.ndarray
    indices: np.ndarray


def energy_distance(reference: ArrayLike, samples: ArrayLike) -> float:
    """Energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Székely and Rizzo 2013).

    U-statistics (divisors ``n (n - 1)``, ``m (m - 1)``): the mean for equal distributions is 0 for
    any number of samples, so that the value may be slightly negative. In the population it is 0
    only for equal distributions.

    Args:
        reference: Samples ``(n, ...)``; trailing axes are flattened.
        samples: Samples ``(m, ...)``.

    Returns:
        The distance, in the units of the data.

    Raises:
        ValueError: Fewer than two samples, dimensions differ, or values are not finite.
    """
    reference, samples = as_pair(reference, samples)
    within = sum(mean_within(distance_blocks(x, x), np.sqrt) for x in (reference, samples))
    return 2 * mean_between(distance_blocks(reference, samples), np.sqrt) - within


def sliced_wasserstein(
    reference: ArrayLike, samples: ArrayLike, key: jax.Array, *, directions: int = 1000
) -> float:
    """Squared sliced Wasserstein distance ``SW_2^2``.

    The mean of ``W_2^2`` in one dimension over random unit directions (Bonneel et al. 2015). Keep
    the key fixed when comparing models: they then share the directions.

    Args:
        reference: Samples ``(n, ...)``; trailing axes are flattened.
        samples: Samples ``(m, ...)``; the two numbers may differ.
        key: Draws the directions.
        directions: How many.

    Returns:
        ``SW_2^2``, a biased estimate: positive between two finite sets of one distribution.

    Raises:
        ValueError: Dimensions differ, no directions, or values that are not finite.
    """
    reference, samples = as_pair(reference, samples, minimum=1)
    if directions < 1:
        raise ValueError(f"directions={directions}: at least one is needed")
    shape = (directions, reference.shape[1])
    vectors = np.asarray(jax.random.normal(key, shape), np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coupling = _Coupling.between(len(reference), len(samples))
    total = 0.0
    for start in range(0, directions, _DIRECTION_BLOCK):
        block = vectors[start : start + _DIRECTION_BLOCK].T
        total += coupling.cost(reference @ block, samples @ block, 2).sum()
    return float(total / directions)


def wasserstein_1d(reference: ArrayLike, samples: ArrayLike, *, order: int = 1) -> float:
    """Wasserstein distance ``W_p`` between samples on the line, exactly, for any two numbers.

    ``W_p^p = int_0^1 |F^{-1}(u) - G^{-1}(u)|^p du`` over the empirical quantile functions.

    Args:
        reference: Values ``(n, 1)``.
        samples: Values ``(m, 1)``.
        order: ``p >= 1``.

    Returns:
        ``W_p``, in the units of the data.

    Raises:
        ValueError: More than one dimension, ``order`` below 1, or values that are not finite.
    """
    reference, samples = as_pair(reference, samples, minimum=1)
    if reference.shape[1] != 1:
        raise ValueError(
            f"samples have {reference.shape[1]} dimensions, not 1; use sliced_wasserstein"
        )
    if order < 1:
        raise ValueError(f"order={order} must be at least 1")
    coupling = _Coupling.between(len(reference), len(samples))
    return float(coupling.cost(reference, samples, order)[0] ** (1 / order))


def nearest_neighbours(reference: ArrayLike, queries: ArrayLike, *, k: int = 1) -> Neighbours:
    """The nearest reference samples to each query: is a model copying its training data?

    Memorisation shows as queries (samples) nearer to the training set than held-out data are.

    Args:
        reference: Samples ``(n, ...)``; trailing axes are flattened.
        queries: Samples ``(m, ...)``.
        k: How many neighbours, at most ``n``.

    Returns:
        Distances and indices, each ``(m, k)``, closest first.

    Raises:
        ValueError: ``k`` is out of range, dimensions differ, or values are not finite.
    """
    reference, queries = as_pair(reference, queries, minimum=1)
    if not 1 <= k <= len(reference):
        raise ValueError(f"k={k} neighbours need 1 <= k <= {len(reference)} reference samples")
    distances = np.empty((len(queries), k))
    indices = np.empty((len(queries), k), np.int64)
    for rows, squared in distance_blocks(queries, reference):
        nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(squared, nearest, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        distances[rows] = np.sqrt(np.take_along_axis(values, order, axis=1))
        indices[rows] = np.take_along_axis(nearest, order, axis=1)
    return Neighbours(distances, indices)


class _Coupling(NamedTuple):
    """The monotone coupling of ``n`` and ``m`` equally weighted, sorted values.

    Both quantile functions are constant between consecutive points of ``{i/n}`` and ``{j/m}``, so
    that the optimal plan is a list of pairs with weights, the same for every direction.
    """

    left: np.ndarray
    right: np.ndarray
    weights: np.ndarray

    @classmethod
    def between(cls, n: int, m: int) -> "_Coupling":
        # In units of 1 / (n m), so that common points are recognised exactly.
        ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
        starts = np.concatenate([[0], ends[:-1]])
        return cls(starts // m, starts // n, (ends - starts) / (n * m))

    def cost(self, x: np.ndarray, y: np.ndarray, order: int) -> np.ndarray:
        """``W_p^p`` of each column of ``x`` ``(n, c)`` and ``y`` ``(m, c)``."""
        gaps = np.abs(np.sort(x, axis=0)[self.left] - np.sort(y, axis=0)[self.right])
        return self.weights @ gaps**order
