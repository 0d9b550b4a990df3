"""Maximum mean discrepancies: KID, its exact form, and Gaussian kernels.

All are the unbiased estimate ``MMD^2 = mean_{i!=j} k(R_i, R_j) + mean_{i!=j} k(S_i, S_j) -
2 mean_ij k(R_i, S_j)`` (Gretton et al. 2012): its mean is 0 for equal distributions whatever the
number of samples, so that it may be negative.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffjax.metrics._samples import (
    Blocks,
    Elementwise,
    as_matrix,
    as_pair,
    distance_blocks,
    gram_blocks,
    mean_between,
    mean_within,
)

__all__ = ["KernelDistance", "gaussian_mmd", "kernel_distance", "median_distance", "polynomial_mmd"]

_SCALES = (0.5, 1.0, 2.0)  # bandwidths of the Gaussian kernel, in units of the given one
_MEDIAN_SAMPLES = 2048  # enough for a median, and its distances fit in memory


class KernelDistance(NamedTuple):
    """KID over random subsets. Papers print it times 1000 or times 100; this is the plain value.

    Attributes:
        mean: Mean over the subsets.
        std: Standard deviation of one subset's value (divisor: number of subsets).
    """

    mean: float
    std: float


def kernel_distance(
    reference: ArrayLike,
    samples: ArrayLike,
    key: jax.Array,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """KID: the unbiased MMD^2 with the kernel ``(a.b / d + 1)^3``, over random subsets.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4. Each subset is drawn from both sets
    without replacement.

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.
        key: Chooses the subsets.
        subsets: Number of subsets.
        subset_size: Samples of each set in a subset.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: A set is smaller than a subset, dimensions differ, or values are not finite.
    """
    reference, samples = as_pair(reference, samples)
    available = min(len(reference), len(samples))
    if not 2 <= subset_size <= available:
        raise ValueError(
            f"subset_size={subset_size}: subsets need between 2 samples and the {available} that "
            "both sets have"
        )
    if subsets < 1:
        raise ValueError(f"subsets={subsets}: at least one is needed")

    def draw(key: jax.Array, x: np.ndarray) -> np.ndarray:
        return x[np.asarray(jax.random.permutation(key, len(x)))[:subset_size]]

    values = [
        _polynomial_mmd(draw(key_r, reference), draw(key_s, samples))
        for key_r, key_s in jax.random.split(key, (subsets, 2))
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def polynomial_mmd(reference: ArrayLike, samples: ArrayLike) -> float:
    """What KID estimates, from all pairs at once: no subsets, no randomness, least variance.

    Args:
        reference: Features ``(n, ...)``; trailing axes are flattened.
        samples: Features ``(m, ...)``.

    Returns:
        The unbiased MMD^2 with the kernel ``(a.b / d + 1)^3``.

    Raises:
        ValueError: Fewer than two samples, dimensions differ, or values are not finite.
    """
    return _polynomial_mmd(*as_pair(reference, samples))


def gaussian_mmd(
    reference: ArrayLike, samples: ArrayLike, *, bandwidth: float | None = None
) -> float:
    """Unbiased MMD^2 with Gaussian kernels of three widths.

    ``k(a, b) = mean over c in {1/2, 1, 2} of exp(-|a - b|^2 / (2 (c h)^2))``.

    Args:
        reference: Samples ``(n, ...)``; trailing axes are flattened.
        samples: Samples ``(m, ...)``.
        bandwidth: ``h``. By default the median distance of the reference alone (never of both sets,
            or the values of two models would not compare).

    Returns:
        The unbiased MMD^2.

    Raises:
        ValueError: Fewer than two samples, dimensions differ, values are not finite, or the
            bandwidth is not positive.
    """
    reference, samples = as_pair(reference, samples)
    bandwidth = median_distance(reference) if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise ValueError(
            f"bandwidth={bandwidth} must be positive (is half of the reference one sample?)"
        )

    def kernel(squared: np.ndarray) -> np.ndarray:
        exponent = squared / (-2 * bandwidth**2)
        return sum(np.exp(exponent / scale**2) for scale in _SCALES) / len(_SCALES)

    return _mmd(reference, samples, distance_blocks, kernel)


def median_distance(samples: ArrayLike) -> float:
    """Median Euclidean distance between two different samples, a bandwidth for kernels.

    Args:
        samples: ``(n, ...)``; trailing axes are flattened. Of more than 2048, evenly spaced ones
            count, at most 2048.

    Raises:
        ValueError: Fewer than two samples, or values that are not finite.
    """
    samples = as_matrix(samples, "samples")
    samples = samples[:: -(-len(samples) // _MEDIAN_SAMPLES)]
    squared = np.concatenate([block for _, block in distance_blocks(samples, samples)])
    return float(np.median(np.sqrt(squared[np.triu_indices(len(samples), k=1)])))


def _polynomial_mmd(reference: np.ndarray, samples: np.ndarray) -> float:
    def kernel(gram: np.ndarray) -> np.ndarray:
        base = gram / reference.shape[1] + 1.0
        return base * base * base  # several times as fast as NumPy's power

    return _mmd(reference, samples, gram_blocks, kernel)


def _mmd(
    reference: np.ndarray,
    samples: np.ndarray,
    pairs: Callable[[np.ndarray, np.ndarray], Blocks],
    kernel: Elementwise,
) -> float:
    """The unbiased MMD^2 for a kernel that is a function of what ``pairs`` yields."""
    within = sum(mean_within(pairs(x, x), kernel) for x in (reference, samples))
    return within - 2 * mean_between(pairs(reference, samples), kernel)
