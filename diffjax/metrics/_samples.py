"""What every metric asks of its input, and the pairwise distances several of them share.

Metrics run on the host in float64. Pairwise matrices are formed a block of rows at a time, so that
memory stays bounded whatever the number of samples.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

_BLOCK_ENTRIES = 2**23  # entries of a pairwise block: 64 MiB in float64

Blocks = Iterator[tuple[slice, np.ndarray]]
Elementwise = Callable[[np.ndarray], np.ndarray]


def as_matrix(array: ArrayLike, name: str, *, minimum: int = 2) -> np.ndarray:
    """Checks a set of samples and returns it as a float64 matrix.

    Args:
        array: Samples ``(n, ...)``; trailing axes are flattened.
        name: What the caller calls it, for messages.
        minimum: Fewest samples the metric makes sense for.

    Returns:
        The samples as ``(n, d)``.

    Raises:
        ValueError: Fewer than two axes, fewer than ``minimum`` samples, no features, or values
            that are not finite.
    """
    array = np.asarray(array)
    if array.ndim < 2:
        raise ValueError(f"{name}: expected an array (n, ...), one row a sample; got {array.shape}")
    if array.shape[0] < minimum:
        raise ValueError(f"{name}: at least {minimum} samples are needed, got {array.shape[0]}")
    if not array[0].size:
        raise ValueError(f"{name}: samples have no features, shape {array.shape}")
    matrix = array.reshape(array.shape[0], -1).astype(np.float64)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name}: {np.sum(~finite)} of {len(matrix)} samples hold NaN or infinity "
            f"(first: index {np.argmin(finite)}); fix what made them before scoring"
        )
    return matrix


def as_pair(
    reference: ArrayLike, samples: ArrayLike, *, minimum: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Checks two sets that are to be compared; see ``as_matrix``.

    Raises:
        ValueError: One set is unusable, or their samples differ in shape.
    """
    left, right = np.shape(reference)[1:], np.shape(samples)[1:]
    if left != right:
        raise ValueError(f"one reference sample has shape {left}, one generated sample {right}")
    return (
        as_matrix(reference, "reference", minimum=minimum),
        as_matrix(samples, "samples", minimum=minimum),
    )


def as_labels(labels: ArrayLike, count: int, classes: int, name: str = "labels") -> np.ndarray:
    """Checks integer labels ``(count,)`` in ``[0, classes)``.

    Raises:
        ValueError: Wrong shape, not integers, or out of range.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected integers of shape ({count},), got {labels.dtype} {labels.shape}"
        )
    if count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"{name}: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return labels


def require_neighbours(k: int, count: int, name: str) -> None:
    """Raises ValueError unless ``1 <= k < count``."""
    if not 1 <= k < count:
        raise ValueError(
            f"k={k} nearest neighbours need 1 <= k < number of samples; {name} has {count}"
        )


def gram_blocks(x: np.ndarray, y: np.ndarray) -> Blocks:
    """Yields ``(rows, x[rows] @ y.T)``, a block of rows at a time."""
    step = max(1, _BLOCK_ENTRIES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, x[rows] @ y.T


def distance_blocks(x: np.ndarray, y: np.ndarray) -> Blocks:
    """Yields ``(rows, squared)``, the squared Euclidean distances ``|x_i - y_j|^2`` of those rows.

    ``|x|^2 + |y|^2 - 2 x.y`` about the mean of ``y``, which is fast but rounds: what is within the
    rounding error of zero becomes exactly zero, so that duplicates are at distance 0.
    """
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms_x, norms_y = (np.einsum("nd,nd->n", z, z) for z in (x, y))
    tolerance = (x.shape[1] + 4) * np.finfo(np.float64).eps
    for rows, squared in gram_blocks(x, y):
        scale = norms_x[rows, None] + norms_y
        squared *= -2
        squared += scale
        scale *= tolerance
        squared[squared <= scale] = 0.0
        yield rows, squared


def mean_between(blocks: Blocks, function: Elementwise) -> float:
    """Mean of ``function`` over all entries of the blocks."""
    total, count = 0.0, 0
    for _, block in blocks:
        total += function(block).sum()
        count += block.size
    return float(total / count)


def mean_within(blocks: Blocks, function: Elementwise) -> float:
    """Mean of ``function`` over the entries off the diagonal, for blocks of a set with itself.

    The U-statistic: unbiased, because a sample never meets itself.
    """
    total, count = 0.0, 0
    for rows, block in blocks:
        values = function(block)
        total += values.sum() - np.diagonal(values, offset=rows.start).sum()
        count += block.size - len(block)
    return float(total / count)
