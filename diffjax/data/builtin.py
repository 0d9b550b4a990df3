"""Data that come with scikit-learn, so that every experiment can start without a download."""

from __future__ import annotations

import numpy as np
from sklearn import datasets

from diffjax.data.base import ArraySource, Example

__all__ = ["PatchSource", "digits", "patches"]


def digits(*, split: str) -> ArraySource:
    """Handwritten digits, 8 x 8 grey, 10 classes: 898 to train, 899 to test.

    The grey values 0..16 become round(255 v / 16); `levels` is therefore 17. The halves come
    from one fixed permutation, and 'all' is 'train' followed by 'test'.

    Args:
        split: 'train', 'test' or 'all'.

    Returns:
        The source.
    """
    data = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    half = len(order) // 2
    order = {"train": order[:half], "test": order[half:], "all": order}[split]
    images = np.round(data.images[order, :, :, None] * (255 / 16)).astype(np.uint8)
    return ArraySource(images, data.target[order], num_classes=10, name="digits", levels=17)


def patches(*, split: str, size: int = 32, length: int | None = None, seed: int = 0) -> PatchSource:
    """Random crops of scikit-learn's two sample photographs, 427 x 640 RGB; label = photograph.

    'train' crops the left four fifths of each photograph and 'test' the rest, so that the two
    share no pixel; 'all' crops everywhere.

    Args:
        split: 'train', 'test' or 'all'.
        size: height and width of the crops, at most 128.
        length: number of crops; 50,000 ('train', 'all') or 5,000 ('test') when None.
        seed: of the positions. Crop i depends on i, `seed` and the split only, not on `length`.

    Returns:
        The source.

    Raises:
        ValueError: `size` or `length` is out of range.
    """
    if not 1 <= size <= 128:
        raise ValueError(f"patches: size must be in 1..128, got {size}")
    if length is None:
        length = 5_000 if split == "test" else 50_000
    if length < 1:
        raise ValueError(f"patches: length must be at least 1, got {length}")
    photographs = np.stack(datasets.load_sample_images().images)
    border = photographs.shape[2] * 4 // 5
    columns = {"train": slice(border), "test": slice(border, None), "all": slice(None)}[split]
    region = photographs[:, :, columns]
    return PatchSource(region, size=size, length=length, seed=seed)


class PatchSource:
    """Crops of a few pictures; crop i comes from picture i mod n, at a random place.

    Args:
        pictures: uint8 (n, height, width, channels).
        size: height and width of the crops.
        length: number of crops.
        seed: of the places.
    """

    name = "patches"
    levels = 256

    def __init__(self, pictures: np.ndarray, *, size: int, length: int, seed: int):
        self._pictures, self._size = pictures, size
        self.num_classes, height, width, channels = pictures.shape
        self.shape = (size, size, channels)
        # Row i of the table is drawn i-th, so a longer table starts with the shorter one.
        places = (height - size + 1, width - size + 1)
        self._corners = np.random.default_rng(seed).integers(places, size=(length, 2))

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]  # counts from the end when negative, IndexError past it
        row, column = self._corners[index]
        label = index % self.num_classes
        image = self._pictures[label, row : row + self._size, column : column + self._size]
        return {"image": image, "label": label}
