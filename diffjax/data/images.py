"""Images as numbers, as files and as contact sheets."""

from __future__ import annotations

import math
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image

__all__ = [
    "centre_crop",
    "class_columns",
    "contact_sheet",
    "image_grid",
    "save_png",
    "shrink",
    "side_by_side",
    "to_float",
    "to_uint8",
]


def to_float(image: ArrayLike) -> Array:
    """Maps bytes to the range of the diffusion: x / 127.5 - 1.

    Args:
        image: uint8, any shape.

    Returns:
        float32 in [-1, 1], the same shape.
    """
    return jnp.asarray(image).astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: ArrayLike) -> Array:
    """Maps [-1, 1] to bytes, the inverse of `to_float`: clip(127.5 x + 127.5, 0, 255), rounded.

    Rounds to the nearest byte, halves to the even one. Truncating instead, as some published
    evaluations do, darkens every image by half a grey level.

    Args:
        x: float, any shape; values outside [-1, 1] are clipped.

    Returns:
        uint8, the same shape.
    """
    return jnp.round(jnp.clip(127.5 * jnp.asarray(x) + 127.5, 0.0, 255.0)).astype(jnp.uint8)


def shrink(x: ArrayLike, side: int) -> Array:
    """Makes images smaller: each pixel the mean of those it covers.

    Args:
        x: float (n, height, width, channels).
        side: height of the result; the width shrinks as much.

    Returns:
        float (n, side, ..., channels).

    Raises:
        ValueError: height and width are no multiples of what a pixel would cover.
    """
    rows, height, width, channels = jnp.shape(x)
    factor = height // max(side, 1)
    if factor < 1 or factor * side != height or width % factor:
        raise ValueError(f"images {height}x{width} cannot be shrunk to a height of {side}")
    blocks = jnp.reshape(x, (rows, side, factor, width // factor, factor, channels))
    return blocks.mean(axis=(2, 4))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes and crops to size x size by the convention of ADM, which DiT and others follow.

    The picture is halved with a box filter while its short side is at least 2 `size`, resized
    with PIL's bicubic filter until the short side is `size`, and cropped in the middle. Other
    filters give measurably other FIDs. A size x size picture is returned unchanged.

    Args:
        image: 8-bit picture, 'L' or 'RGB'.
        size: height and width of the result.

    Returns:
        The picture, size x size.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def image_grid(images: ArrayLike, columns: int | None = None) -> np.ndarray:
    """Lays images out row by row on one sheet; places left over stay black.

    Args:
        images: uint8 (n, height, width, channels).
        columns: images in a row; about square when None.

    Returns:
        uint8 (rows * height, columns * width, channels).

    Raises:
        ValueError: the images are not a non-empty uint8 batch, or there are no columns.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            "image_grid needs uint8 (n, height, width, channels) with n >= 1, "
            f"got {images.dtype} {images.shape}; convert floats with to_uint8"
        )
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid: columns must be at least 1, got {columns}")
    rows = math.ceil(number / columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:number] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)


def class_columns(number: int, classes: int) -> int | None:
    """Columns of a sheet on which images whose labels cycle stand below others of their class.

    Args:
        number: images on the sheet.
        classes: number of classes, 0 without any.

    Returns:
        The multiple of `classes` that makes the sheet most nearly square; None, for a square one,
        where there are no classes, more than 20, or more than images.
    """
    if not 0 < classes <= min(number, 20):
        return None
    return classes * max(1, round(math.sqrt(number) / classes))


def contact_sheet(images: ArrayLike, columns: int | None = None) -> np.ndarray:
    """Lays images out to be looked at: each in a grey frame, small ones enlarged.

    Args:
        images: uint8 (n, height, width, channels).
        columns: images in a row; about square when None.

    Returns:
        uint8 (rows * (height + 2) * zoom, columns * (width + 2) * zoom, channels), where zoom is
        the least that makes an image 32 pixels high.

    Raises:
        ValueError: as `image_grid` does.
    """
    frame = ((0, 0), (1, 1), (1, 1), (0, 0))
    sheet = image_grid(np.pad(np.asarray(images), frame, constant_values=96), columns)
    zoom = math.ceil(32 / np.shape(images)[1])
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def side_by_side(left: ArrayLike, right: ArrayLike, columns: int) -> np.ndarray:
    """Two contact sheets with a white gap between them, cut to the height of the shorter.

    Args:
        left: uint8 (n, height, width, channels).
        right: uint8 (m, height, width, channels).
        columns: images in a row of each.

    Returns:
        uint8 (height, width, channels) of the whole.
    """
    sheets = [contact_sheet(part, columns) for part in (left, right)]
    height = min(map(len, sheets))
    left, right = (sheet[:height] for sheet in sheets)
    return np.concatenate([left, np.full_like(left[:, :16], 255), right], axis=1)


def save_png(path: str | os.PathLike, image: ArrayLike) -> None:
    """Writes one image as a PNG file, making its directory if need be.

    Args:
        path: where to.
        image: uint8 (height, width, 1 or 3).

    Raises:
        ValueError: the image has another type or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"save_png needs uint8 (height, width, 1 or 3), got {image.dtype} {image.shape}; "
            "convert floats with to_uint8"
        )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path, format="PNG")
