"""Features of the Inception network on disk: of images round by round, of data as statistics.

What is computed is kept in the workdir at once, so that an interrupted evaluation goes on where it
stopped, a larger one adds to a smaller one, and another reference costs no new samples.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from diffjax import convert, data, metrics, parallel
from diffjax.data import Source
from diffjax.metrics import FeatureStatistics, Reference
from diffjax.metrics.inception import InceptionProbe
from diffjax.options import about

__all__ = [
    "MAX_REAL",
    "WEIGHTS",
    "Gathered",
    "Judge",
    "gather",
    "identity",
    "load_judge",
    "write_reference",
]

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid (release fid_weights)"

ROUND = 2048  # images whose features make a file
SAVE_EVERY = 10  # rounds after which the statistics of a reference so far are kept
MAX_REAL = 10_000  # real images that precision, recall and KID look at, as in ADM's references
MAX_REAL_BYTES = 2**31


class Judge(NamedTuple):
    """The network as a function of images, and what tells its weights from others.

    Attributes:
        probe: uint8 images to features.
        digest: Of the weights.
    """

    probe: InceptionProbe
    digest: str

    @property
    def convention(self) -> str:
        """How images come to the network."""
        return self.probe.convention

    def name(self, text: str) -> str:
        """A short name for features of what the text describes, under these weights."""
        whole = f"{self.digest} {self.convention} {text}"
        return hashlib.sha256(whole.encode()).hexdigest()[:12]


def load_judge(path: str | os.PathLike, convention: str, mesh: Mesh) -> Judge:
    """The network of a weights file, on all devices of a mesh.

    Raises:
        ValueError: There is no such file, or it holds something else.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(
            f"config.evaluate.inception: no file {path}; it is {WEIGHTS}. Without it, "
            "--config.evaluate.inception= gives the scores for small data"
        )
    with about(f"evaluate.inception={os.fspath(path)}"):
        tensors = convert.load(path)
        _, variables = convert.from_torch("inception", tensors)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    probe = InceptionProbe(
        jax.device_put(variables, NamedSharding(mesh, PartitionSpec())),
        convention,
        batch_size=64 * mesh.size,
        sharding=parallel.batch_sharding(mesh),
    )
    return Judge(probe, digest.hexdigest()[:12])


class Gathered(NamedTuple):
    """Features on disk, a file a round.

    Attributes:
        directory: Where they lie.
        number: How many images they are of.
    """

    directory: pathlib.Path
    number: int

    def rounds(self) -> list[range]:
        """Indices of the images of each round."""
        starts = range(0, self.number, ROUND)
        return [range(start, min(start + ROUND, self.number)) for start in starts]

    def path(self, part: range) -> pathlib.Path:
        """The file of a round."""
        return self.directory / f"{part.start:08d}-{part.stop:08d}.npz"

    def read(self, part: range, field: str) -> np.ndarray:
        """Features of a round."""
        with np.load(self.path(part), allow_pickle=False) as file:
            return file[field]

    def all(self, field: str) -> np.ndarray:
        """Features of all images, in order."""
        return np.concatenate([self.read(part, field) for part in self.rounds()])

    def statistics(self, field: str, convention: str) -> FeatureStatistics:
        """Mean and covariance of a kind of features, a round in memory at a time."""
        first, *rest = self.rounds()
        statistics = FeatureStatistics.of(self.read(first, field), convention)
        for part in rest:
            statistics = statistics.add(self.read(part, field))
        return statistics


def gather(
    wanted: Gathered, images: Callable[[range], np.ndarray], judge: Judge, progress: str
) -> None:
    """Computes the features of the rounds that are not on disk yet.

    Args:
        wanted: What is to be there afterwards.
        images: uint8 images of the indices of a round.
        judge: What computes the features.
        progress: Title of a progress bar, shown on a terminal.
    """
    wanted.directory.mkdir(parents=True, exist_ok=True)
    with tqdm(total=wanted.number, desc=progress, unit="image", disable=None) as bar:
        for part in wanted.rounds():
            if not wanted.path(part).exists():
                features = judge.probe(images(part))
                if jax.process_index() == 0:
                    metrics.save_npz(wanted.path(part), features._asdict())
            bar.update(len(part))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("features are on disk")


def write_reference(source: Source, judge: Judge, path: pathlib.Path) -> Reference:
    """Statistics of all images of a source, and some of the images: ADM's form.

    Goes on where it was interrupted. The images lie evenly spaced, as sources may be sorted.

    Args:
        source: The data, not augmented.
        judge: What computes the features.
        path: Where to.

    Returns:
        What was written.
    """
    wanted = identity(source, judge)
    partial = path.with_suffix(".partial.npz")
    saved = metrics.load_reference(partial) if partial.is_file() else Reference()
    found = None
    if saved.data_hash == wanted:
        found = saved.pool, saved.spatial
    done = found[0].count if found else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "features of the training data"
    with tqdm(total=len(source), initial=done, desc=title, unit="image", disable=None) as bar:
        rounds = data.epoch(source, ROUND, start=done)
        for number, batch in enumerate(rounds, 1):
            features = judge.probe(batch["image"])
            both = features.pool, features.spatial
            if found is None:
                found = tuple(FeatureStatistics.of(each, judge.convention) for each in both)
            else:
                found = tuple(old.add(new) for old, new in zip(found, both, strict=True))
            bar.update(len(batch["image"]))
            if number % SAVE_EVERY == 0 and jax.process_index() == 0:
                metrics.save_reference(partial, Reference(*found, data_hash=wanted))
    number = min(len(source), MAX_REAL, MAX_REAL_BYTES // math.prod(source.shape))
    chosen = np.arange(number) * len(source) // number
    images = np.stack([source[int(i)]["image"] for i in chosen])
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)  # as the ADM suite reads them
    reference = Reference(*found, images=images, data_hash=wanted)
    if jax.process_index() == 0:
        metrics.save_reference(path, reference)
        partial.unlink(missing_ok=True)
    return reference


def identity(source: Source, judge: Judge) -> str:
    """Tells the statistics of some data under some weights from all others."""
    return judge.name(f"{source.name} {len(source)} {source.shape}")
