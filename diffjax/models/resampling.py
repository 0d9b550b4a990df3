"""Filtered resampling by two: what NCSN++ does where others repeat and average pixels.

The filters are separable and tiny, so they are sums of shifted images, one axis after the other,
which fuse; a convolution over one channel at a time would not.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffjax.typing import Array

__all__ = ["downsample", "filtered", "upsample"]


def upsample(x: Array, kernel: Sequence[float]) -> Array:
    """Doubles height and width: zeros between the pixels, then the filter, its sum 2 an axis.

    Args:
        x: Images ``(batch, height, width, channels)``.
        kernel: Taps of the filter, at least two; ``(1, 1)`` repeats each pixel.

    Returns:
        ``(batch, 2 height, 2 width, channels)``.
    """
    taps = 2 * _normalised(kernel)
    before = (len(taps) - 1) // 2 + 1
    for axis in (1, 2):
        x = _up(x, axis, taps, before)
    return x


def downsample(x: Array, kernel: Sequence[float]) -> Array:
    """Halves height and width: the filter, its sum 1, at every second pixel.

    Args:
        x: Images ``(batch, height, width, channels)``; height and width even.
        kernel: Taps of the filter, at least two; ``(1, 1)`` takes the mean of four pixels.

    Returns:
        ``(batch, height / 2, width / 2, channels)``.
    """
    excess = len(kernel) - 2
    return filtered(x, kernel, ((excess + 1) // 2, excess // 2), stride=2)


def filtered(
    x: Array, kernel: Sequence[float], padding: tuple[int, int], *, stride: int = 1
) -> Array:
    """The filter along both axes, of images padded by zeros.

    Args:
        x: Images ``(batch, height, width, channels)``.
        kernel: Taps of the filter; their sum is made 1.
        padding: Zeros before and after, along each axis.
        stride: Distance between the outputs.

    Returns:
        Images of ``(size + padding - taps) // stride + 1`` pixels along each axis.
    """
    taps = _normalised(kernel)
    for axis in (1, 2):
        padded = jnp.pad(x, [padding if a == axis else (0, 0) for a in range(4)])
        length = padded.shape[axis] - len(taps) + 1
        # A convolution, not a correlation: the last tap meets the first pixel.
        x = sum(
            tap * _slice(padded, axis, shift, shift + length, stride)
            for shift, tap in enumerate(taps[::-1].tolist())
        )
    return x


def _up(x: Array, axis: int, taps: np.ndarray, before: int) -> Array:
    """Output ``2 q + r`` is the sum over ``j`` of tap ``j`` at pixel ``q + (r + j - before) / 2``.

    Only every second tap meets a pixel; the others meet the zeros in between.
    """
    size, reach = x.shape[axis], len(taps)
    padded = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(4)])
    phases = []
    for phase in (0, 1):
        met = [j for j in range(reach) if (phase + j - before) % 2 == 0]
        starts = [reach + (phase + j - before) // 2 for j in met]
        weights = taps[::-1][met].tolist()
        phases.append(
            sum(w * _slice(padded, axis, s, s + size) for w, s in zip(weights, starts, strict=True))
        )
    shape = list(x.shape)
    shape[axis] *= 2
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _slice(x: Array, axis: int, start: int, stop: int, stride: int = 1) -> Array:
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]


def _normalised(kernel: Sequence[float]) -> np.ndarray:
    taps = np.asarray(kernel, np.float64)
    return taps / taps.sum()
