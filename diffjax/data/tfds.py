"""TensorFlow Datasets, read at random through array_record; no TensorFlow is needed to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffjax.data.base import Example
from diffjax.data.images import centre_crop

__all__ = ["TfdsSource", "tfds"]


def tfds(
    dataset: str,
    *,
    split: str,
    data_dir: str | None = None,
    size: int | None = None,
    image_key: str = "image",
    label_key: str = "label",
) -> TfdsSource:
    """A data set of TensorFlow Datasets (TFDS).

    A data set that is not on disk yet is downloaded and built, for which TFDS needs TensorFlow.

    Args:
        dataset: its name, e.g. 'cifar10' or 'imagenet_resized/64x64:0.1.0'.
        split: 'train', 'test', 'all', or anything TFDS takes, e.g. 'validation' or 'train[:90%]'.
        data_dir: where data sets lie; TFDS's own default when None.
        size: height and width: images are resized and cropped by `images.centre_crop`. None
            takes them as they are, and they must then all have one shape.
        image_key: the feature that holds the image.
        label_key: the feature that holds the class; a data set without it is unlabelled.

    Returns:
        The source.

    Raises:
        ValueError: TFDS is not installed, or it has no such data set, split or image.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"tfds:{dataset} needs TensorFlow Datasets: pip install diffjax[tfds]"
        ) from error
    try:
        examples = tensorflow_datasets.data_source(dataset, split=split, data_dir=data_dir)
    except ImportError as error:
        raise ValueError(
            f"tfds:{dataset} could not be opened ({error}); if it is not in "
            f"{data_dir or 'the TFDS directory'} yet, building it needs TensorFlow: "
            "pip install tensorflow"
        ) from error
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"tfds:{dataset}: no such data set ({line})") from error
    features = examples.dataset_info.features
    if image_key not in features:
        raise ValueError(
            f"tfds:{dataset} has no {image_key!r}; its features: {', '.join(sorted(features))}"
        )
    num_classes = features[label_key].num_classes if label_key in features else 0
    return TfdsSource(dataset, examples, num_classes, image_key, label_key, size)


class TfdsSource:
    """Examples of TFDS in the form of this library.

    Args:
        dataset: the name.
        examples: random-access sequence of feature dictionaries.
        num_classes: number of labels, 0 when there are none.
        image_key: the feature that holds the image.
        label_key: the feature that holds the class.
        size: height and width to resize and crop to, or None.
    """

    levels = 256

    def __init__(
        self,
        dataset: str,
        examples: Sequence[dict[str, Any]],
        num_classes: int,
        image_key: str,
        label_key: str,
        size: int | None,
    ):
        self.name, self.num_classes = f"tfds:{dataset}", num_classes
        self._examples, self._size = examples, size
        self._image_key, self._label_key = image_key, label_key
        self.shape = self._image(0, examples[0]).shape

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        example = self._examples[index]
        image = self._image(index, example)
        if image.shape != self.shape:
            raise ValueError(
                f"{self.name}: image {index} has shape {image.shape} but the first {self.shape}; "
                "pass size= to resize them all"
            )
        return {"image": image, "label": int(example[self._label_key]) if self.num_classes else 0}

    def _image(self, index: int, example: dict[str, Any]) -> np.ndarray:
        """The image of an example, uint8 (height, width, channels)."""
        image = np.asarray(example[self._image_key])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            raise ValueError(
                f"{self.name}: {self._image_key!r} of example {index} is not an image: need uint8 "
                f"(height, width, 1 or 3), got {image.dtype} {image.shape}"
            )
        if self._size is None:
            return image
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        return np.asarray(centre_crop(picture, self._size)).reshape(self._size, self._size, -1)
