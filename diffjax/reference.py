"""Reference statistics of a data set: the features of all its images, in the field's npz form.

The features are those of a small classifier trained on the same images, so they need labels. The
classifier is stored beside the statistics: only features of the same one compare.
"""

import hashlib
import math
import os
import pathlib

import jax
import numpy as np

from diffjax import data
from diffjax.data import ArraySource, Source
from diffjax.metrics import FeatureStatistics, Reference, save_reference
from diffjax.metrics.probe import ClassifierProbe, train_classifier

__all__ = ["PROBE_FILE", "REFERENCE_FILE", "probe", "write"]

REFERENCE_FILE, PROBE_FILE = "reference.npz", "probe.npz"

# The classifier is trained on floats in memory, four bytes a value.
MAX_BYTES = 2**32


def probe(examples: ArraySource, workdir: str | os.PathLike) -> ClassifierProbe:
    """The judge of a workdir: a small classifier trained on these examples, and kept.

    Raises:
        ValueError: The examples have no classes to tell apart.
    """
    if examples.num_classes < 2:
        raise ValueError(
            f"the data {examples.name!r} have no classes to tell apart: the features are those of "
            "a classifier trained on them, which needs labels"
        )
    path = pathlib.Path(workdir, PROBE_FILE)
    if path.exists():
        return ClassifierProbe.load(path)
    trained = train_classifier(
        np.asarray(data.to_float(examples.images)), examples.labels, examples.num_classes
    )
    if jax.process_index() == 0:
        trained.save(path)
    return trained


def write(source: Source, workdir: str | os.PathLike) -> pathlib.Path:
    """Writes the statistics of the judge's features of all images, and the judge.

    Args:
        source: The data; in memory, so at most 4 GiB as floats.
        workdir: Where to; made if need be.

    Returns:
        Path of the statistics.

    Raises:
        ValueError: The data have no labels, or are too large.
    """
    if 4 * len(source) * math.prod(source.shape) > MAX_BYTES:
        raise ValueError(
            f"the data {source.name!r}, {len(source)} images of {source.shape}, do not fit in "
            f"{MAX_BYTES >> 30} GiB as floats: use config.data.options.size, or a part of them"
        )
    examples = data.in_memory(source)
    judge = probe(examples, workdir)
    features = judge.features(np.asarray(data.to_float(examples.images)))
    statistics = FeatureStatistics.of(features, judge.convention)
    digest = hashlib.sha256(examples.images.tobytes()).hexdigest()
    path = pathlib.Path(workdir, REFERENCE_FILE)
    if jax.process_index() == 0:
        save_reference(path, Reference(pool=statistics, data_hash=digest[:16]))
    return path
