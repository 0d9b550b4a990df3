"""Images that were encoded once by an autoencoder, as a source of latents.

A directory holds `moments.npy`, float32 (n, h, w, 2 c): for each image the means of its latents,
then their log variances; `labels.npy`, int32 (n,); and `latents.json`, which says of what images
they are and by which autoencoder. Where mirrored images were encoded as well, they follow the
others. `--mode encode` writes it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffjax.data.base import Example

__all__ = ["LABELS_FILE", "MOMENTS_FILE", "RECORD_FILE", "LatentSource", "latents", "read_record"]

RECORD_FILE, MOMENTS_FILE, LABELS_FILE = "latents.json", "moments.npy", "labels.npy"


def latents(path: str, *, split: str) -> LatentSource:
    """Latents in a directory.

    Args:
        path: the directory.
        split: 'train' or 'all', which are the same: training images are encoded.

    Returns:
        The source; its arrays stay on disk and are read as they are asked for.

    Raises:
        ValueError: there are none, or not all images have been encoded yet.
    """
    name = f"latents:{path}"
    if split == "test":
        raise ValueError(f"{name} has no split 'test': training images are encoded")
    record = read_record(path)
    if record["done"] < record["images"]["number"]:
        raise ValueError(
            f"{name}: {record['done']} of {record['images']['number']} images are encoded; start "
            "--mode encode again, and it goes on"
        )
    return LatentSource(path, record)


def read_record(path: str) -> dict[str, Any]:
    """What `latents.json` of a directory says.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = pathlib.Path(path).expanduser() / RECORD_FILE
    if not file.is_file():
        raise ValueError(f"latents:{path}: no file {file}; --mode encode writes it")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


class LatentSource:
    """Latents on disk. An example's 'image' are the moments, float32 (h, w, 2 c).

    Args:
        path: the directory.
        record: what `read_record` says of it.

    Attributes:
        shape: (h, w, c) of a latent.
        levels: 0, for these are no grey values.
        scale: factor that makes the variance of the latents 1, or that of their publication.
        encoded_by: digest of the autoencoder.
        autoencoder: where the autoencoder was when the images were encoded.
    """

    levels = 0

    def __init__(self, path: str, record: Mapping[str, Any]):
        self.name = f"latents:{path}"
        self.shape, self.num_classes = tuple(record["shape"]), record["num_classes"]
        self.scale, self.encoded_by = record["scale"], record["autoencoder"]["digest"]
        self.autoencoder = record["autoencoder"]["workdir"]
        directory = pathlib.Path(path).expanduser()
        try:
            self._moments = np.load(directory / MOMENTS_FILE, mmap_mode="r")
            self._labels = np.load(directory / LABELS_FILE)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name}: cannot be read ({error})") from error
        *latent, channels = self.shape
        if self._moments.shape != (len(self._labels), *latent, 2 * channels):
            raise ValueError(f"{self.name}: {MOMENTS_FILE} does not fit {RECORD_FILE}")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": np.asarray(self._moments[index]), "label": int(self._labels[index])}
