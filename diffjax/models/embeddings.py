"""Embeddings of times, labels and positions, shared by the networks.

Times and labels come as a scalar or one per sample. A scalar becomes a batch of one, and what is
computed from it broadcasts against the batch: a sampler, whose whole batch is at one time, pays for
the conditioning layers once.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffjax.typing import Array

__all__ = [
    "AugmentationEmbedding",
    "LabelEmbedding",
    "as_batch_of_times",
    "fourier_embedding",
    "grid_positions",
    "sinusoidal_embedding",
]

MAX_PERIOD = 10_000.0  # of all sinusoids, as in the Transformer


def as_batch_of_times(time: Array, batch: int) -> Array:
    """Gives ``time`` a leading axis that broadcasts against a batch.

    Args:
        time: Scalar ``()`` or per sample ``(batch,)``, in the network's own units.
        batch: Number of samples.

    Returns:
        Float32 of shape ``(1,)`` or ``(batch,)``.

    Raises:
        ValueError: If ``time`` has any other shape.
    """
    time = jnp.asarray(time, jnp.float32)
    if time.shape not in ((), (batch,)):
        raise ValueError(
            f"time has shape {time.shape}; a batch of {batch} needs a scalar or ({batch},)"
        )
    return jnp.atleast_1d(time)


def sinusoidal_embedding(time: Array, width: int, convention: Literal["ddpm", "adm"]) -> Array:
    """Sines and cosines of a step index at geometrically spaced frequencies.

    With ``half = width // 2``, frequencies run from 1 down to about ``1/10000``::

        ddpm   [sin(f_j t) | cos(f_j t)],   f_j = 10000^(-j / (half - 1))     DDPM, NCSN++, DDPM++
        adm    [cos(f_j t) | sin(f_j t)],   f_j = 10000^(-j / half)           ADM, DiT, U-ViT

    The two differ in order and in the last frequency; published weights fit one of them only.

    Args:
        time: Step index, usually in 0..999, shape ``(batch,)``; fractions are allowed.
        width: Number of features; an odd one ends in a zero.
        convention: Which of the two published forms.

    Returns:
        Features of shape ``(batch, width)``.

    Raises:
        ValueError: If ``width`` is too small or ``convention`` is neither of the two.
    """
    if width < 4:
        raise ValueError(f"a sinusoidal embedding needs a width of at least 4, got {width}")
    half = width // 2
    match convention:
        case "ddpm":
            exponents = np.arange(half) / (half - 1)
        case "adm":
            exponents = np.arange(half) / half
        case _:
            raise ValueError(f"convention must be 'ddpm' or 'adm', got {convention!r}")
    # In float64 until the end: a rounded frequency is multiplied by times up to 999.
    frequencies = jnp.asarray(MAX_PERIOD**-exponents, jnp.float32)
    angles = time[:, None] * frequencies
    waves = [jnp.sin(angles), jnp.cos(angles)]
    features = jnp.concatenate(waves if convention == "ddpm" else waves[::-1], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


def fourier_embedding(time: Array, width: int) -> Array:
    """Fourier features of a time of order one, such as ``t`` in [0, 1] or EDM's ``log(sigma) / 4``.

    ``[sin(2 pi f_j t) | cos(2 pi f_j t)]`` with ``f_j`` geometric from 1/16 (never wraps for
    ``|t| < 8``) to 8. Fixed frequencies instead of random ones: on one input dimension a grid
    covers the band evenly, and the features depend on no seed.

    Args:
        time: Shape ``(batch,)``.
        width: Number of features, even.

    Returns:
        Features of shape ``(batch, width)``.

    Raises:
        ValueError: If ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"a Fourier embedding needs an even width, got {width}")
    frequencies = jnp.asarray(2 * np.pi * np.geomspace(1 / 16, 8, width // 2), jnp.float32)
    angles = time[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def grid_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """The fixed table of two-dimensional sin-cos position embeddings of MAE and DiT.

    The first ``width / 2`` features of a row encode the *column* of the token, the last the *row*;
    each half is ``[sin | cos]`` of ``position * 10000^(-k / (width / 4))``.

    Args:
        rows: Height of the grid of tokens.
        columns: Its width.
        width: Number of features, divisible by 4.

    Returns:
        Float32 of shape ``(rows * columns, width)``, row by row.

    Raises:
        ValueError: If ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {width}")
    frequencies = MAX_PERIOD ** (-np.arange(width // 4) / (width // 4))
    row, column = np.indices((rows, columns)).reshape(2, -1, 1) * frequencies
    waves = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return np.concatenate(waves, axis=-1).astype(np.float32)


class AugmentationEmbedding(nn.Module):
    """A linear map without bias of what was done to the input: nothing done, nothing added.

    Attributes:
        features: Length of the result.
        dtype: Type of the result; the parameters are float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, augmentation: Array | None) -> Array:
        """Maps ``(batch, k)`` to ``(batch, features)``; None to zero, without any parameters."""
        if augmentation is None:
            return jnp.zeros((1, self.features), self.dtype)
        dense = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="dense")
        return dense(augmentation)


class LabelEmbedding(nn.Module):
    """One learned vector a class, and one more, the last, for "no label".

    Attributes:
        num_classes: Number of classes; index ``num_classes`` is the null label of classifier-free
            guidance.
        features: Length of a vector.
        stddev: Standard deviation of the initial vectors.
        null: Whether there is a null label.
        dtype: Type of the result; the table is float32.
    """

    num_classes: int
    features: int
    stddev: float = 1.0
    null: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, labels: Array | None, batch: int) -> Array:
        """Looks the labels up.

        Args:
            labels: Class indices ``(batch,)``, or None for the null label.
            batch: Number of samples.

        Returns:
            Vectors of shape ``(batch, features)``, or ``(1, features)`` when ``labels`` is None.

        Raises:
            ValueError: If ``labels`` is not one integer a sample, or the network has no classes, or
                there are none and it has no null label.
        """
        if labels is None:
            if self.num_classes and not self.null:
                raise ValueError("this network has no null label: give the labels of all samples")
            labels = jnp.full((1,), self.num_classes)
        elif self.num_classes == 0:
            raise ValueError(
                "labels were given to an unconditional network; set num_classes or pass labels=None"
            )
        else:
            labels = jnp.asarray(labels)
            if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
                raise ValueError(
                    f"labels must be {batch} integers, one a sample; "
                    f"got shape {labels.shape}, type {labels.dtype}"
                )
        if self.num_classes == 0:
            return jnp.zeros((1, self.features), self.dtype)
        table = nn.Embed(
            self.num_classes + self.null,
            self.features,
            embedding_init=nn.initializers.normal(self.stddev),
            dtype=self.dtype,
            name="table",
        )
        return table(labels)
