"""Bits per dimension, of integer images and of densities of their dequantised form.

An integer image ``x`` has ``b = -log2 p(x) / D``, ``D`` its number of values. A density model sees
the image spread uniformly over bins, ``y = low + (high - low) (x + u) / 256`` with ``u ~ U[0, 1)``,
and bounds it (Theis et al. 2016, arXiv 1511.01844)::

    b <= -log p(y) / (D ln 2) - log2(bin width)

| data as the model sees it        | bin width | offset in bits   |
| -------------------------------- | --------- | ---------------- |
| ``2 (x + u) / 256 - 1``, [-1, 1) | 2 / 256   | 7                |
| ``(x + u) / 256``, [0, 1)        | 1 / 256   | 8                |
| ``x / 127.5 - 1``, [-1, 1]       | 2 / 255   | log2 127.5 = 6.994 |

Plain arithmetic: works on numbers, NumPy and JAX arrays, under ``jit`` and ``grad``.
"""

import math
from collections.abc import Sequence

import jax

__all__ = ["bits_per_dim", "density_bits_per_dim"]


def bits_per_dim(nats: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Nats of one discrete image to bits per dimension, ``nats / (D ln 2)``.

    For negative log-probabilities of integers and their variational bounds; densities also need the
    bin width, see ``density_bits_per_dim``.

    Args:
        nats: ``-log p(x)``, any shape.
        shape: Shape of one image, without the batch.

    Returns:
        Bits per dimension, of the shape of ``nats``.

    Raises:
        ValueError: The shape holds no values.
    """
    dimensions = math.prod(shape)
    if dimensions < 1:
        raise ValueError(f"shape={tuple(shape)}: an image holds at least one value")
    return nats / (dimensions * math.log(2))


def density_bits_per_dim(
    log_density: jax.Array, shape: Sequence[int], *, bin_width: float = 2 / 256
) -> jax.Array:
    """Log-density of a dequantised image to bits per dimension (see the module's table).

    Args:
        log_density: ``log p(y)`` in nats, any shape.
        shape: Shape of one image, without the batch.
        bin_width: What one integer step is in the model's units.

    Returns:
        An upper bound on the bits per dimension of the integer image ("uniform deq.").

    Raises:
        ValueError: The shape holds no values, or the bin width is not positive.
    """
    if not bin_width > 0:
        raise ValueError(f"bin_width={bin_width} must be positive")
    return bits_per_dim(-log_density, shape) - math.log2(bin_width)
