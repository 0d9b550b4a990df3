"""Features of the Inception network, under the conventions that published scores were made with.

The same name, FID, hides several ways to bring an image to the network's 299 pixels. They differ by
more than papers do, so the convention is named, stored with the statistics, and never mixed:

| convention | resizing | range | whose |
| --- | --- | --- | --- |
| ``tensorflow`` | bilinear between corners of pixels | (x - 128) / 128 | ADM, TTUR, EDM |
| ``pytorch`` | bilinear between centres of pixels | 2 x / 255 - 1 | pytorch-fid |
| ``clean`` | bicubic with antialias, as Pillow's of floats | (x - 128) / 128 | clean-fid |
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from diffjax.models.inception import SIZE, Inception

__all__ = ["CONVENTIONS", "Features", "InceptionProbe", "preprocess", "resize_matrix"]


class Features(NamedTuple):
    """Host arrays, a row an image.

    Attributes:
        pool: Float32 ``(n, 2048)``, for FID, KID, precision and recall.
        spatial: Float32 ``(n, 2023)``, for sFID.
        logits: Float32 ``(n, 1008)``, without their bias, for the inception score.
    """

    pool: np.ndarray
    spatial: np.ndarray
    logits: np.ndarray


def _tensorflow_matrix(size: int, target: int) -> np.ndarray:
    # In float32, as the graph computes it: its rounding decides which pixel is the lower one.
    place = np.arange(target, dtype=np.float32) * (np.float32(size) / np.float32(target))
    return _linear(place, size, target)


def _pytorch_matrix(size: int, target: int) -> np.ndarray:
    scale = np.float32(size) / np.float32(target)
    place = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    return _linear(np.maximum(place, 0), size, target)


def _linear(place: np.ndarray, size: int, target: int) -> np.ndarray:
    """Each output between its two neighbours; past the last pixel, that pixel."""
    lower = np.minimum(np.floor(place).astype(int), size - 1)
    matrix, rows = np.zeros((target, size)), np.arange(target)
    share = place - lower
    matrix[rows, lower] += 1 - share
    matrix[rows, np.minimum(lower + 1, size - 1)] += share
    return matrix


def _bicubic_matrix(size: int, target: int) -> np.ndarray:
    """Pillow's: Keys' cubic with ``a = -1/2``, widened where the image shrinks, rows of sum 1."""
    scale = size / target
    width = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    pixel = np.arange(size)
    x = np.abs((pixel + 0.5 - centre) / width)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    matrix = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    reached = (pixel >= np.floor(centre - 2 * width + 0.5)) & (
        pixel < np.floor(centre + 2 * width + 0.5)
    )
    matrix = np.where(reached, matrix, 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


# Convention -> resizing, and the range the network sees.
CONVENTIONS = {
    "tensorflow": (_tensorflow_matrix, lambda x: (x - 128) / 128),
    "pytorch": (_pytorch_matrix, lambda x: 2 * (x / 255) - 1),
    "clean": (_bicubic_matrix, lambda x: (jnp.clip(x, 0, 255) - 128) / 128),
}


def resize_matrix(size: int, target: int, convention: str) -> np.ndarray:
    """The linear map of one axis from ``size`` pixels to ``target``: float64 ``(target, size)``.

    Raises:
        ValueError: The convention is unknown.
    """
    return _convention(convention)[0](size, target)


def preprocess(images: jax.Array, convention: str) -> jax.Array:
    """Brings images to what the network takes.

    Args:
        images: uint8 ``(batch, height, width, 1 or 3)``; grey ones get their channel three times.
        convention: One of ``CONVENTIONS``.

    Returns:
        Float32 ``(batch, 299, 299, 3)``.

    Raises:
        ValueError: The convention is unknown, or the images are no such images.
    """
    resize, normalise = _convention(convention)
    if images.ndim != 4 or images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "Inception features are of uint8 images (n, height, width, 1 or 3), got "
            f"{images.dtype} {images.shape}"
        )
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):  # along rows first, as Pillow does
        matrix = jnp.asarray(resize(x.shape[axis], SIZE), jnp.float32)
        x = jnp.moveaxis(
            jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST), 0, axis
        )
    return jnp.broadcast_to(normalise(x), (*x.shape[:-1], 3))


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionProbe:
    """The network with its weights, as a function of images.

    Attributes:
        variables: As ``Inception().apply`` takes them.
        convention: One of ``CONVENTIONS``.
        batch_size: Images at a time; memory grows with it.
        sharding: How a batch lies on the devices; None for the default device.
    """

    variables: Mapping[str, Any]
    convention: str = "tensorflow"
    batch_size: int = 64
    sharding: jax.sharding.Sharding | None = None

    def __post_init__(self):
        """Checks the convention before anything is computed."""
        _convention(self.convention)

    def __call__(self, images: ArrayLike) -> Features:
        """Features of any number of images, computed in batches.

        Args:
            images: uint8 ``(n, height, width, 1 or 3)``.

        Raises:
            ValueError: They are not.
        """
        images = np.asarray(images)
        devices = 1 if self.sharding is None else self.sharding.num_devices
        size = math.ceil(min(self.batch_size, len(images)) / devices) * devices
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            # The last batch is as large as the others: one program serves all.
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)), mode="edge")
            placed = padded if self.sharding is None else jax.device_put(padded, self.sharding)
            found = _features(self.variables, placed, self.convention)
            parts.append([np.asarray(feature)[: len(part)] for feature in found])
        return Features(*(np.concatenate(feature) for feature in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=2)
def _features(variables: Mapping[str, Any], images: jax.Array, convention: str) -> Features:
    found = Inception().apply(variables, preprocess(images, convention))
    return Features(found.pool, found.spatial, found.unbiased_logits)


def _convention(name: str):
    if name not in CONVENTIONS:
        raise ValueError(
            f"unknown convention {name!r}: choose one of {', '.join(CONVENTIONS)} "
            "(ADM's and EDM's, pytorch-fid's, clean-fid's)"
        )
    return CONVENTIONS[name]
