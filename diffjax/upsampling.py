"""Upsamplers in an experiment: what they are trained to enlarge, and what they are to enlarge.

``config.data.low_res`` is the height of the small images and makes a run an upsampler; training
shrinks its own images. To draw, ``config.sample.low_res`` names the small images: a file of samples
as ``--mode sample`` of another run writes them, or the split of the data to be shrunk.
"""

import functools
import hashlib
import inspect
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffjax import data
from diffjax.components import CHAINS, NETWORKS, check_classes, sample_labels
from diffjax.data import Source
from diffjax.options import about
from diffjax.typing import Array

__all__ = ["Wanted", "beside", "shrinking", "shrunk", "small_images", "small_shape", "wanted"]

SPLITS = ("train", "test")


class Wanted(NamedTuple):
    """What samples are asked to show.

    Attributes:
        labels: Their classes, int32 ``(n,)``; None of an unconditional system.
        low_res: The small images that they enlarge, uint8 ``(n, height, width, C)``; None of a
            system that is no upsampler.
    """

    labels: np.ndarray | None
    low_res: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Tells small images from others; '' where there are none."""
        if self.low_res is None:
            return ""
        return hashlib.sha256(np.ascontiguousarray(self.low_res).tobytes()).hexdigest()[:12]


def shrinking(config: ml_collections.ConfigDict) -> Callable[[Array], Array] | None:
    """How an upsampler's training images become small ones; None for other systems.

    Raises:
        ValueError: Network, sampler or data do not go with it.
    """
    side, field = config.data.low_res, f"config.data.low_res={config.data.low_res}"
    module = NETWORKS.get(config.network)
    enlarges = module and "low_res" in inspect.signature(module.__call__).parameters
    if not side and not enlarges:
        return None
    if not side:
        raise ValueError(
            f"network {config.network!r} enlarges small images: set config.data.low_res to their "
            "height"
        )
    if not enlarges:
        raise ValueError(
            f"{field} makes an upsampler, but network {config.network!r} sees no small images: use "
            "'adm_super_resolution', or set it to 0"
        )
    if config.data.get("scale") is not None or config.sampler == CHAINS:
        raise ValueError(f"{field}: upsamplers are of images, and drawn by a solver")
    shrink = functools.partial(data.shrink, side=side)
    with about("data.low_res"):
        jax.eval_shape(shrink, jax.ShapeDtypeStruct((1, *config.data.shape), jnp.float32))
    return shrink


def wanted(
    config: ml_collections.ConfigDict, num_classes: int, labels: str, number: int, seed: int = 0
) -> Wanted:
    """What samples ``0 .. number - 1`` are asked to show.

    Args:
        config: Of an experiment, made by ``experiment.build``.
        num_classes: That can be asked for, 0 of an unconditional system.
        labels: As in ``config.sample.labels``. An upsampler takes those that come with its small
            images instead, where there are any.
        number: How many.
        seed: Of random labels.

    Raises:
        ValueError: Labels or small images are not to be had, or do not fit.
    """
    classes = sample_labels(labels, number, num_classes, seed)
    if not config.data.low_res:
        if config.sample.low_res:
            raise ValueError(
                f"config.sample.low_res={config.sample.low_res!r}, but this run is no upsampler: "
                "set it to ''"
            )
        return Wanted(classes)
    with about("sample.low_res"):
        images, own = small_images(config, number)
        if own is not None and num_classes:
            check_classes(own, number, num_classes)
            classes = own.astype(np.int32)
    return Wanted(classes, images)


def small_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Shape of what an upsampler enlarges, ``(height, width, channels)``."""
    height, width, channels = config.data.shape
    side = config.data.low_res
    return side, width * side // height, channels


def small_images(
    config: ml_collections.ConfigDict, number: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The first small images that ``config.sample.low_res`` names, uint8, and their labels if any.

    Raises:
        ValueError: It names none, too few, or some of another shape.
    """
    name, shape = config.sample.low_res, small_shape(config)
    if not name:
        raise ValueError(
            f"an upsampler enlarges small images {shape}: name a .npz of them, as --mode sample of "
            "another run writes it, or 'test' or 'train' for those of the data"
        )
    if name in SPLITS:
        source = data.create_images(config.data.source, split=name, **config.data.options)
        images, labels = shrunk(source, config.data.low_res, number)
    else:
        images, labels = _of_a_file(pathlib.Path(name), number)
    if images.shape[1:] != shape or images.dtype != np.uint8:
        raise ValueError(
            f"{name} holds {images.dtype} images {images.shape[1:]}, not uint8 {shape}"
        )
    if len(images) < number:
        raise ValueError(f"{name} has {len(images)} images, but {number} samples are asked for")
    return images, labels


def shrunk(source: Source, side: int, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Some images of a source made small, uint8, and their labels if any; all if it has fewer."""
    examples = data.in_memory(source, number)
    small = data.to_uint8(data.shrink(data.to_float(examples.images), side))
    return np.asarray(small), examples.labels


def beside(low_res: np.ndarray | None, images: np.ndarray) -> np.ndarray:
    """Each image with the small one that it was made of on its left; as they are without those."""
    if low_res is None:
        return images
    factor = images.shape[1] // low_res.shape[1]
    enlarged = low_res[: len(images)].repeat(factor, axis=1).repeat(factor, axis=2)
    return np.concatenate([enlarged, images], axis=2)


def _of_a_file(path: pathlib.Path, number: int):
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with np.load(path) as file:
            images, labels = file["arr_0"][:number], file.get("arr_1")
    except (KeyError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no images (arr_0): {error}") from error
    if images.ndim != 4:
        raise ValueError(f"{path}: arr_0 has shape {images.shape}, not (n, height, width, C)")
    return images, None if labels is None else np.asarray(labels)[:number]
