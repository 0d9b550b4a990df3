"""Images in a directory, in a zip archive or in an npz file."""

from __future__ import annotations

import io
import json
import os
import pathlib
import posixpath
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from diffjax.data.base import ArraySource, Example
from diffjax.data.images import centre_crop

__all__ = ["FolderSource", "arrays", "folder"]

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_LABEL_FILE = "dataset.json"
_SPLITS = ("train", "test")

Read = Callable[[str], bytes]


def arrays(path: str, *, split: str) -> ArraySource:
    """An npz file: images in `images` or `arr_0`, labels (if any) in `labels` or `arr_1`.

    The second pair of names is that of ADM's sample and reference files.

    Args:
        path: the file.
        split: 'train' or 'all', which are the same: a file is one set.

    Returns:
        The source, in memory.

    Raises:
        ValueError: the file or its arrays are not as described.
    """
    name = f"arrays:{path}"
    if split == "test":
        raise ValueError(f"{name} is one set and has no split 'test'; name the test set's own file")
    try:
        with np.load(pathlib.Path(path).expanduser()) as stored:
            found = {
                key: stored[key]
                for key in ("images", "arr_0", "labels", "arr_1")
                if key in stored.files
            }
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: not a readable .npz file ({error})") from error
    images = found.get("images", found.get("arr_0"))
    if images is None:
        raise ValueError(f"{name}: no array called 'images' or 'arr_0'")
    return ArraySource(images, found.get("labels", found.get("arr_1")), name=name)


def folder(
    path: str, *, split: str, size: int | None = None, channels: int | None = None
) -> FolderSource:
    """Images below a directory, or in a .zip archive of one, sorted by name.

    Labels are, in this order: those of `dataset.json` at the top, in EDM's form
    {"labels": [[file, class], ...] or null}; else those of the sub-directories, when there are at
    least two, numbered in sorted order as torchvision's ImageFolder does; else there are none.

    When the top holds directories `train` and `test`, they are the splits and 'all' is both.
    Otherwise the images are one set, which is 'train' and 'all'.

    Args:
        path: the directory or archive.
        split: 'train', 'test' or 'all'.
        size: height and width: images are resized and cropped by `images.centre_crop`. None
            takes them as they are, and they must then all have one shape.
        channels: 1 (grey) or 3 (RGB); as the first image when None. Transparency is dropped.

    Returns:
        The source. Each image is decoded when it is asked for.

    Raises:
        ValueError: there are no images or no such split, labels are missing or ambiguous, or
            (when it is read) an image is broken or has another shape than the first.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"folder: channels must be 1 (grey) or 3 (RGB), got {channels}")
    if size is not None and size < 1:
        raise ValueError(f"folder: size must be at least 1, got {size}")
    names, read = _open(path)
    images = [name for name in names if name.lower().endswith(_EXTENSIONS)]
    if not images:
        raise ValueError(f"folder:{path}: no images; looked for *{', *'.join(_EXTENSIONS)}")
    has_splits = set(_SPLITS) <= {_directory(image) for image in images}
    if has_splits:
        images = [image for image in images if _directory(image) in _SPLITS]
    elif split == "test":
        raise ValueError(
            f"folder:{path} is one set and has no split 'test'; put the images into directories "
            "'train' and 'test', or name the test set's own directory"
        )
    # Found before a split is taken, so that a class has the same number in both.
    if _LABEL_FILE in names:
        labels = _json_labels(path, images, read(_LABEL_FILE))
    else:
        labels = _directory_labels(path, images, depth=int(has_splits))
    if has_splits and split != "all":
        images = [image for image in images if _directory(image) == split]
    return FolderSource(path, images, labels, read, size=size, channels=channels)


class FolderSource:
    """Image files, decoded when they are asked for.

    Args:
        path: what they belong to, for messages.
        files: their names.
        labels: class of each file; empty when there are no labels.
        read: function from a name to the content of that file; called from several threads.
        size: height and width to resize and crop to, or None.
        channels: 1 (grey), 3 (RGB) or None: as the first image.
    """

    levels = 256

    def __init__(
        self,
        path: str,
        files: Sequence[str],
        labels: Mapping[str, int],
        read: Read,
        *,
        size: int | None = None,
        channels: int | None = None,
    ):
        self.name = f"folder:{path}"
        self.num_classes = max(labels.values(), default=-1) + 1
        self._path, self._files, self._labels, self._read = path, files, labels, read
        self._size, self._channels = size, channels
        first = self._decode(files[0])
        self._channels, self.shape = first.shape[-1], first.shape

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        file = self._files[index]
        image = self._decode(file)
        if image.shape != self.shape:
            raise ValueError(
                f"{self._path}/{file} has shape {image.shape} but the first image {self.shape}; "
                "pass size= to resize them all"
            )
        return {"image": image, "label": self._labels.get(file, 0)}

    def _decode(self, file: str) -> np.ndarray:
        """Reads one image, uint8 (height, width, channels)."""
        try:
            image = Image.open(io.BytesIO(self._read(file)))
            image.load()
        except Exception as error:  # whatever a decoder meets in a broken file
            raise ValueError(f"cannot read the image {self._path}/{file}: {error}") from error
        if image.mode.startswith(("I", "F")):  # PIL would clip these to 8 bits without a word
            raise ValueError(
                f"{self._path}/{file} has more than 8 bits a channel; convert it first"
            )
        channels = self._channels or (1 if image.mode in ("1", "L", "LA", "La") else 3)
        image = image.convert("L" if channels == 1 else "RGB")
        if self._size is not None:
            image = centre_crop(image, self._size)
        return np.asarray(image).reshape(image.height, image.width, channels)


def _open(path: str) -> tuple[list[str], Read]:
    """Lists the files below a directory or in an archive, and returns how to read them.

    Names are relative to the deepest directory that holds all files (an archive of a directory
    usually holds just that directory), with '/', sorted, without hidden ones.
    """
    root = pathlib.Path(path).expanduser()
    if root.is_dir():
        names = [
            pathlib.Path(directory, file).relative_to(root).as_posix()
            for directory, _, files in os.walk(root, followlinks=True)
            for file in files
        ]

        def read(name: str) -> bytes:
            return (root / name).read_bytes()

    elif zipfile.is_zipfile(root):
        archive, lock = zipfile.ZipFile(root), threading.Lock()
        names = [name for name in archive.namelist() if not name.endswith("/")]

        def read(name: str) -> bytes:
            with lock:  # a ZipFile keeps one file position and an unguarded count of its readers
                return archive.read(name)

    else:
        raise ValueError(f"folder:{path}: no such directory or zip archive")
    names = sorted(name for name in names if not _hidden(name))
    if not names:
        return [], read
    top = posixpath.commonpath([posixpath.dirname(name) for name in names])
    prefix = f"{top}/" if top else ""
    return [name.removeprefix(prefix) for name in names], lambda name: read(prefix + name)


def _hidden(name: str) -> bool:
    """Whether a file is hidden, or metadata that macOS adds to archives."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _directory(name: str) -> str | None:
    """The first directory of a name, None at the top."""
    first, slash, _ = name.partition("/")
    return first if slash else None


def _json_labels(path: str, images: list[str], content: bytes) -> dict[str, int]:
    """Labels of an EDM archive; empty when it has none."""
    try:
        labels = dict(json.loads(content)["labels"] or ())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path}/{_LABEL_FILE} is not of the form {{"labels": [[file, class], ...] or null}}'
        ) from error
    if not labels:
        return {}
    for image in images:
        if image not in labels:
            raise ValueError(f"{path}/{_LABEL_FILE} has no label for {image}")
        if not isinstance(labels[image], int) or labels[image] < 0:
            raise ValueError(
                f"{path}/{_LABEL_FILE}: the label of {image} must be a class number, "
                f"got {labels[image]!r}"
            )
    return {image: labels[image] for image in images}


def _directory_labels(path: str, images: list[str], depth: int) -> dict[str, int]:
    """Labels by the directories `depth` levels below the top; empty when there are not two."""
    parents = {image: _directory(image.split("/", depth)[-1]) for image in images}
    classes = set(parents.values())
    if len(classes) < 2:
        return {}
    if None in classes:
        stray = next(image for image in images if parents[image] is None)
        raise ValueError(
            f"{path}: {stray} lies beside class directories; put every image into one, or none"
        )
    number = {name: i for i, name in enumerate(sorted(classes))}
    return {image: number[parent] for image, parent in parents.items()}
