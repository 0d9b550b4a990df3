"""Data sources by name."""

from __future__ import annotations

import difflib
import inspect

from diffjax.data.base import Source
from diffjax.data.builtin import digits, patches
from diffjax.data.files import arrays, folder
from diffjax.data.latents import latents, read_record
from diffjax.data.tfds import tfds

__all__ = ["create", "images"]

_SOURCES = {
    "digits": digits,
    "patches": patches,
    "folder:PATH": folder,
    "arrays:PATH.npz": arrays,
    "tfds:NAME": tfds,
    "latents:DIR": latents,
}


def create(name: str, *, split: str = "train", **options) -> Source:
    """Opens a data source.

    | name | data | options |
    | --- | --- | --- |
    | `digits` | scikit-learn's handwritten digits, 8 x 8 x 1 | |
    | `patches` | crops of two photographs, 32 x 32 x 3 | `size`, `length`, `seed` |
    | `folder:PATH` | images in a directory or a zip archive | `size`, `channels` |
    | `arrays:PATH.npz` | arrays in a file | |
    | `tfds:NAME` | TensorFlow Datasets | `data_dir`, `size`, `image_key`, `label_key` |
    | `latents:DIR` | images that `--mode encode` has encoded | |

    The functions of the same names say what the options mean.

    Args:
        name: one of the names above.
        split: 'train', 'test' or 'all'.
        **options: of that source.

    Returns:
        The source.

    Raises:
        ValueError: there is no such source, split or option, or the data are not as they should be.
    """
    kind, _, argument = name.partition(":")
    forms = {form.partition(":")[0]: form for form in _SOURCES}
    if kind not in forms or bool(argument) != (":" in forms[kind]):
        nearest = difflib.get_close_matches(kind, forms, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data source {name!r}; did you mean {forms[nearest]!r}? "
            f"Sources: {', '.join(_SOURCES)}"
        )
    # TFDS has splits of its own, such as 'validation' or 'train[:90%]'.
    if kind != "tfds" and split not in ("train", "test", "all"):
        raise ValueError(f"unknown split {split!r} of {name!r}; splits: train, test, all")
    source = _SOURCES[forms[kind]]
    known = [
        parameter.name
        for parameter in inspect.signature(source).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "split"
    ]
    for option in options:
        if option not in known:
            raise ValueError(
                f"data source {kind!r} has no option {option!r}; "
                f"its options: {', '.join(known) or 'none'}"
            )
    return source(*([argument] if argument else []), split=split, **options)


def images(name: str, *, split: str = "train", **options) -> Source:
    """Opens a data source as `create` does, but of latents the images that were encoded.

    Args:
        name: of the source.
        split: 'train', 'test' or 'all'.
        **options: of that source.

    Returns:
        A source of images.

    Raises:
        ValueError: as `create`.
    """
    kind, _, path = name.partition(":")
    if kind != "latents":
        return create(name, split=split, **options)
    encoded = read_record(path)["images"]
    return create(encoded["source"], split=split, **encoded["options"])
