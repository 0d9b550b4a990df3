"""What ``--mode encode`` does: the images of a source as latents on disk, encoded once.

Round by round, over all devices. A round that is done is kept, so an interrupted encoding goes on,
and ends with the same files.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from diffjax import data, parallel, serving
from diffjax.data import Source
from diffjax.data.latents import LABELS_FILE, MOMENTS_FILE, RECORD_FILE, read_record
from diffjax.logging import say
from diffjax.options import about
from diffjax.systems import Autoencoder

__all__ = ["encode", "run"]

ROUND = 1024  # images that are encoded between two notes of how far it went
BATCH = 16  # images a device encodes at a time

Record = dict[str, Any]


def run(config: ml_collections.ConfigDict, directory: str | os.PathLike) -> None:
    """Encodes the training images of ``config.data`` by ``config.data.autoencoder``.

    With ``config.data.flip`` their mirror images too: the mirror of a latent is not the latent of
    the mirror.

    Args:
        config: Whose data; of its other sections nothing is used.
        directory: Where to; what an interrupted encoding left there is gone on with.

    Raises:
        ValueError: Data, autoencoder and what lies in the directory do not fit together.
    """
    workdir = config.data.autoencoder
    if not workdir:
        raise ValueError(
            "config.data.autoencoder is empty: name the run that encodes, as in "
            "--config.data.autoencoder=runs/ae"
        )
    autoencoder = serving.load_autoencoder(workdir)
    with about("data"):
        source = data.create(config.data.source, split="train", **config.data.options)
    images = dict(source=config.data.source, options=config.data.options.to_dict())
    record = encode(
        source, autoencoder, directory, images=images, flip=config.data.flip, workdir=workdir
    )
    mirrored = " and their mirror images" if config.data.flip else ""
    shape = "x".join(map(str, record["shape"]))
    say(
        f"{len(source)} images{mirrored} as latents {shape} of standard deviation "
        f"{record['std']:.4f}, scale {record['scale']:.5g}: {directory}\n"
        f"to train on them: --config.data.source=latents:{directory} "
        f"--config.data.autoencoder={workdir}"
    )


def encode(
    source: Source,
    autoencoder: Autoencoder,
    directory: str | os.PathLike,
    *,
    images: Mapping[str, Any],
    flip: bool = False,
    workdir: str = "",
) -> Record:
    """Writes the latents' moments, the labels and the record of a source.

    Args:
        source: Images.
        autoencoder: What encodes them.
        directory: Where to; see ``data.latents`` for what it holds then.
        images: Name and options of the source, for the record.
        flip: Whether the mirror images are encoded as well.
        workdir: Where the autoencoder is, for the record.

    Returns:
        The record.

    Raises:
        ValueError: The source does not fit the autoencoder, or the directory holds latents of
            others.
    """
    directory = pathlib.Path(directory)
    shape = _latent_shape(source, autoencoder)
    wanted = {
        "autoencoder": {"workdir": workdir, "digest": autoencoder.digest},
        "images": {**images, "number": len(source), "flip": flip},
        "shape": list(shape),
        "num_classes": source.num_classes,
    }
    record = _begin(directory, wanted)
    run_batch, size = _compile(autoencoder)
    number, title = len(source), "encoding"
    with tqdm(total=number, initial=record["done"], desc=title, unit="image", disable=None) as bar:
        for batch in data.epoch(source, ROUND, start=record["done"]):
            start, pixels = record["done"], batch["image"]
            _write(directory / LABELS_FILE, start, batch["label"])
            _write(directory / MOMENTS_FILE, start, run_batch(pixels, size))
            if flip:
                _write(directory / LABELS_FILE, number + start, batch["label"])
                mirrored = run_batch(pixels[:, :, ::-1], size)
                _write(directory / MOMENTS_FILE, number + start, mirrored)
            # Noted when it is on disk: what is not noted is encoded again.
            record["done"] = start + len(pixels)
            _save(directory, record)
            bar.update(len(pixels))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("latents are on disk")
    if "std" not in record:
        record["std"] = _standard_deviation(directory / MOMENTS_FILE)
        record["scale"] = autoencoder.scale or 1 / record["std"]
        _save(directory, record)
    return record


def _latent_shape(source: Source, autoencoder: Autoencoder) -> tuple[int, ...]:
    if not source.levels:
        raise ValueError(f"the data {source.name!r} are latents already")
    shape = jax.ShapeDtypeStruct((1, *source.shape), jnp.float32)
    with about(f"data.autoencoder: the data {source.name!r} cannot be encoded"):
        moments = jax.eval_shape(_moments(autoencoder), autoencoder.params, shape)
    *latent, channels = moments.shape[1:]
    return (*latent, channels // 2)


def _moments(autoencoder: Autoencoder) -> Callable:
    """``(params, images in [-1, 1]) -> moments (n, h, w, 2 c)``."""

    def encoded(params, x):
        posterior = autoencoder.network.apply({"params": params}, x, method="encode")
        return jnp.concatenate(posterior, axis=-1)

    return encoded


def _compile(autoencoder: Autoencoder) -> tuple[Callable[[np.ndarray, int], np.ndarray], int]:
    """``(uint8 images, rows at a time) -> moments`` on the host, and how many rows fit."""
    mesh = parallel.make_mesh()
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(autoencoder.params, replicated)
    encoded = _moments(autoencoder)
    compiled = jax.jit(
        lambda params, images: encoded(params, data.to_float(images)), out_shardings=replicated
    )

    def run_batch(images: np.ndarray, size: int) -> np.ndarray:
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            # The last is as large as the others: one program serves all.
            rows = jax.device_put(
                np.resize(part, (size, *part.shape[1:])), parallel.batch_sharding(mesh)
            )
            parts.append(np.asarray(compiled(params, rows))[: len(part)])
        return np.concatenate(parts)

    return run_batch, BATCH * mesh.size


def _begin(directory: pathlib.Path, wanted: Record) -> Record:
    """The record to go on with: that of the directory, or a new one with empty files."""
    if (directory / RECORD_FILE).is_file():
        record = read_record(directory)
        for what in ("autoencoder", "images"):
            theirs, ours = ({**each[what], "workdir": ""} for each in (record, wanted))
            if theirs != ours:
                raise ValueError(
                    f"{directory} holds latents of {'another' if what[0] == 'a' else 'other'} "
                    f"{what}, {_listing(record[what])} (now {_listing(wanted[what])}): give "
                    "another --workdir"
                )
        return record
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        number = wanted["images"]["number"] * (2 if wanted["images"]["flip"] else 1)
        *latent, channels = wanted["shape"]
        shapes = {
            MOMENTS_FILE: (np.float32, (number, *latent, 2 * channels)),
            LABELS_FILE: (np.int32, (number,)),
        }
        for name, (dtype, shape) in shapes.items():
            np.lib.format.open_memmap(directory / name, "w+", dtype, shape).flush()
    record = {**wanted, "done": 0}
    _save(directory, record)
    return record


def _listing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != {})


def _write(path: pathlib.Path, start: int, rows: np.ndarray) -> None:
    """Writes rows of an array on disk. Not through a memory map: a full disk is then an error."""
    if jax.process_index():
        return
    stored = np.load(path, mmap_mode="r")
    with path.open("r+b") as file:
        file.seek(stored.offset + start * stored.strides[0])
        file.write(np.ascontiguousarray(rows, stored.dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _save(directory: pathlib.Path, record: Record) -> None:
    if jax.process_index():
        return
    temporary = directory / f"{RECORD_FILE}.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, directory / RECORD_FILE)


def _standard_deviation(path: pathlib.Path) -> float:
    """Of all entries of draws of the latents, a round in memory at a time."""
    moments = np.load(path, mmap_mode="r")
    first = second = 0.0
    for start in range(0, len(moments), ROUND):
        mean, log_variance = np.split(np.asarray(moments[start : start + ROUND], float), 2, -1)
        first += mean.sum()
        second += (mean**2 + np.exp(log_variance)).sum()
    entries = moments.size / 2
    return math.sqrt(second / entries - (first / entries) ** 2)
