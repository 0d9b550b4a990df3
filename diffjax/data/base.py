"""What a data source is, and the simplest one: images held in memory."""

from __future__ import annotations

import dataclasses
from typing import Protocol, TypedDict

import numpy as np
from absl import logging

__all__ = ["ArraySource", "Example", "Source", "check_labels", "in_memory"]


class Example(TypedDict):
    """One example of a source: an image, uint8 (height, width, channels), and its label.

    Of latents (see `data.latents`) the moments, float32 (height, width, 2 channels).
    """

    image: np.ndarray
    label: int


class Source(Protocol):
    """A random-access data set.

    `source[i]` raises IndexError past the end and may be called from several threads at once.
    Any object with these members works everywhere in the library.

    Attributes:
        name: what reports and warnings call it.
        shape: (height, width, channels) of every image.
        num_classes: number of labels, 0 when there are none (every label is then 0).
        levels: number of grey levels that occur in each channel; 0 when these are latents.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    levels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory.

    Attributes:
        images: uint8 (n, height, width, channels).
        labels: integers (n,) in 0..num_classes - 1, or None.
        num_classes: number of labels; found from the labels when not given.
        name: what reports call it.
        levels: number of grey levels that occur.

    Raises:
        ValueError: the arrays do not have these types and shapes.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int | None = None
    name: str = "arrays"
    levels: int = 256

    def __post_init__(self):
        images, labels = np.asarray(self.images), self.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"{self.name}: images must be uint8 (n, height, width, channels), "
                f"got {images.dtype} {images.shape}"
            )
        object.__setattr__(self, "images", images)
        if labels is None:
            if self.num_classes:
                raise ValueError(f"{self.name}: num_classes={self.num_classes} but no labels")
            object.__setattr__(self, "num_classes", 0)
            return
        labels = np.asarray(labels)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels must be integers of shape ({len(images)},), "
                f"got {labels.dtype} {labels.shape}"
            )
        found = int(labels.max(initial=-1)) + 1
        num_classes = found if self.num_classes is None else self.num_classes
        if labels.min(initial=0) < 0 or found > num_classes:
            raise ValueError(
                f"{self.name}: labels must be in 0..{num_classes - 1}, "
                f"got {labels.min()}..{labels.max()}"
            )
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "num_classes", num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        label = 0 if self.labels is None else int(self.labels[index])
        return {"image": self.images[index], "label": label}


def in_memory(source: Source, limit: int | None = None) -> ArraySource:
    """Reads a source into arrays, for small data read many times or all at once.

    Args:
        source: any source.
        limit: how many examples at the most, evenly spread over the source; None for all.

    Returns:
        The same examples in the same order, as `.images` and `.labels` (None when unlabelled).
    """
    if not source.levels:
        raise ValueError(f"the data {source.name!r} are latents, and images are needed here")
    number = len(source) if limit is None else min(limit, len(source))
    if isinstance(source, ArraySource) and number == len(source):
        return source
    images = np.empty((number, *source.shape), np.uint8)
    labels = np.empty(number, np.int32)
    for i in range(number):
        example = source[i * len(source) // number]
        images[i], labels[i] = example["image"], example["label"]
    return ArraySource(
        images,
        labels if source.num_classes else None,
        num_classes=source.num_classes,
        name=source.name,
        levels=source.levels,
    )


def check_labels(source: Source, conditional: bool) -> None:
    """Warns when labels are ignored, refuses when they are missing; call it once, before training.

    Args:
        source: the training data.
        conditional: whether the system uses the labels.

    Raises:
        ValueError: the system needs labels and the source has none.
    """
    if conditional and not source.num_classes:
        raise ValueError(
            f"the system is conditional but the data {source.name!r} have no labels; "
            "use labelled data, or make the system unconditional"
        )
    if source.num_classes and not conditional:
        logging.warning(
            "LABELS IGNORED: %s has %d classes, but the system is unconditional.",
            source.name,
            source.num_classes,
        )
