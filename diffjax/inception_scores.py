"""Scores in features of the Inception network, as papers report them.

FID, sFID, inception score, KID, precision and recall of any number of samples, against the training
data or against a file of statistics. Memory holds a round of images and, for precision and recall,
some 80 KiB a sample: 4 GB of 50,000.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax import metrics, parallel, sampling
from diffjax.dry_run import network_evaluations
from diffjax.evaluation import evaluation_seed
from diffjax.experiment import Experiment, real_images
from diffjax.inception_features import (
    MAX_REAL,
    WEIGHTS,
    Gathered,
    Judge,
    gather,
    identity,
    load_judge,
    write_reference,
)
from diffjax.metrics import Reference
from diffjax.options import about
from diffjax.state import TrainState
from diffjax.upsampling import Wanted, wanted

__all__ = ["HINT", "REPORT_FILE", "evaluate", "scores", "table", "write_statistics"]

REPORT_FILE = "inception_scores.json"
HINT = (
    "FID as papers report it is in features of the Inception network: give its weights by "
    f"--config.evaluate.inception=PATH, the file {WEIGHTS}"
)
DEFAULT_CONVENTION = "tensorflow"

FEATURES = 2048
MIN_IMAGES = 6
SPLIT = 5000  # samples in a split of the inception score


def evaluate(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> dict:
    """Draws ``config.evaluate.number`` samples, scores them, writes and prints the scores.

    Compared with ``config.evaluate.reference``, a file of statistics in any of the published forms,
    or with the training data, whose statistics are computed once and kept in the workdir.

    Returns:
        The report: nested dicts of numbers, as in ``inception_scores.json``.

    Raises:
        ValueError: The weights, the reference and the config do not fit together.
    """
    workdir, settings = pathlib.Path(workdir), experiment.config.evaluate
    if experiment.system.sample is None:
        raise ValueError("config.evaluate.inception scores images, but this system draws none")
    if settings.number < MIN_IMAGES:
        raise ValueError(
            f"config.evaluate.number={settings.number}: scores need at least {MIN_IMAGES} samples"
        )
    mesh = parallel.sampling_mesh(experiment.config.parallel.fsdp)
    convention, reference = settings.convention or DEFAULT_CONVENTION, None
    if settings.reference:
        with about("evaluate.reference"):
            reference = _load(settings.reference, settings.convention or None)
        convention = reference.pool.convention if reference.pool else convention
    judge = load_judge(settings.inception, convention, mesh)
    path = settings.reference
    if reference is None:
        path, reference = _of_the_data(experiment, judge, workdir)

    reference = _with_features(reference, judge, workdir)
    asked = wanted(experiment.config, experiment.num_classes, "cycle", settings.number)
    name = _name(experiment, state, asked, judge)
    drawn = Gathered(workdir / "inception" / name, settings.number)
    gather(drawn, _drawer(experiment, state, asked, mesh), judge, "samples and their features")
    report = {
        "step": int(state.step),
        "samples": settings.number,
        "nfe": network_evaluations(experiment, settings.guidance),
        "guidance": settings.guidance,
        "convention": convention,
        "weights": judge.digest,
        "reference": {"file": str(path), "n": reference.pool.count},
        "scores": scores(reference, drawn),
    }
    if jax.process_index() == 0:
        (workdir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        print(table(report))
        print(f"as numbers: {workdir / REPORT_FILE}")
    return report


def _with_features(reference: Reference, judge: Judge, workdir: pathlib.Path) -> Reference:
    """The reference with features of its images, and statistics of them where it has none."""
    images = reference.images
    if images is None:
        return reference
    number = len(images) if reference.pool is None else min(len(images), MAX_REAL)
    name = judge.name(hashlib.sha256(images[:number].tobytes()).hexdigest())
    real = Gathered(workdir / "inception" / f"real-{name}", number)
    gather(real, lambda part: images[part.start : part.stop], judge, "features of real images")
    activations = real.all("pool")[:MAX_REAL]
    if reference.pool is not None:
        return dataclasses.replace(reference, activations=activations)
    pool, spatial = (real.statistics(field, judge.convention) for field in ("pool", "spatial"))
    return dataclasses.replace(reference, pool=pool, spatial=spatial, activations=activations)


def scores(reference: Reference, drawn: Gathered) -> dict:
    """What the field reports, of samples against a reference.

    Args:
        reference: Statistics of real images, and features of some; without spatial statistics
            there is no sFID, without features no KID, precision and recall.
        drawn: Features of samples.

    Returns:
        Values by name; FID and sFID carry the number of samples in their names.
    """
    convention = reference.pool.convention
    values = {}
    for metric, field, theirs in (
        ("fid", "pool", reference.pool),
        ("sfid", "spatial", reference.spatial),
    ):
        if theirs is not None:
            ours = drawn.statistics(field, convention)
            name = metrics.sized_name(metric, drawn.number)
            values[name] = metrics.frechet_distance_from_statistics(theirs, ours)
    splits = max(1, drawn.number // SPLIT)
    score = metrics.inception_score(drawn.all("logits"), splits=splits)
    values["inception_score"] = {"mean": score.mean, "std": score.std, "splits": splits}
    if reference.activations is not None:
        first, second = reference.activations[:MAX_REAL], drawn.all("pool")
        size = min(1000, len(first), len(second))
        kid = metrics.kernel_distance(first, second, jax.random.key(0), subset_size=size)
        values["kid"] = {"mean": kid.mean, "std": kid.std, "subset_size": size}
        manifold = metrics.precision_recall(first, second)
        values |= {"precision": manifold.precision, "recall": manifold.recall}
    return values


def table(report: dict) -> str:
    """The report for a reader."""
    values, reference = dict(report["scores"]), report["reference"]
    score, kid = values.pop("inception_score"), values.pop("kid", None)
    lines = [
        f"{report['samples']} samples of step {report['step']}, {report['nfe']} network "
        f"evaluations each, guidance {report['guidance']:g}; Inception features, convention "
        f"{report['convention']}, weights {report['weights']}",
        f"against {reference['file']}, of {reference['n'] or 'an unknown number of'} images",
        *(f"{name:18}{value:10.4f}" for name, value in values.items()),
        f"{'inception score':18}{score['mean']:10.4f} +- {score['std']:.4f} "
        f"(splits: {score['splits']})",
    ]
    if kid:
        lines.append(f"{'KID x 1000':18}{1000 * kid['mean']:10.4f} +- {1000 * kid['std']:.4f}")
    for missing, what in (
        ("kid", "KID, precision and recall need real images (arr_0), which the reference lacks"),
        ("sfid", "sFID needs spatial statistics (mu_s, sigma_s), which the reference lacks"),
    ):
        if not any(name.startswith(missing) for name in report["scores"]):
            lines.append(what)
    return "\n".join(lines)


def write_statistics(experiment: Experiment, workdir: str | os.PathLike) -> pathlib.Path:
    """Writes the reference of the training data into the workdir, unless it is there: the path."""
    settings = experiment.config.evaluate
    mesh = parallel.sampling_mesh(experiment.config.parallel.fsdp)
    judge = load_judge(settings.inception, settings.convention or DEFAULT_CONVENTION, mesh)
    return _of_the_data(experiment, judge, pathlib.Path(workdir))[0]


def _of_the_data(
    experiment: Experiment, judge: Judge, workdir: pathlib.Path
) -> tuple[pathlib.Path, Reference]:
    """The reference of the training data, from the workdir or made there."""
    if experiment.source is None:
        raise ValueError("config.evaluate.reference: give a file, or data in config.data.source")
    path = workdir / f"inception_reference_{judge.convention}.npz"
    if not path.is_file():
        return path, write_reference(real_images(experiment), judge, path)
    reference = metrics.load_reference(path)
    if reference.data_hash != identity(real_images(experiment), judge):
        raise ValueError(f"{path} is of other data or other weights: remove it, or move it away")
    return path, reference


def _load(path: str, convention: str | None) -> Reference:
    if not pathlib.Path(path).is_file():
        raise ValueError(f"no file {path}")
    reference = metrics.load_reference(path, convention)
    pool, images = reference.pool, reference.images
    if pool is None and len(images) < MIN_IMAGES:
        raise ValueError(f"{path}: {len(images)} images are too few")
    if pool is not None and pool.dimension != FEATURES:
        raise ValueError(
            f"{path}: statistics of {pool.dimension} features; the Inception network's are "
            f"{FEATURES}"
        )
    return reference


def _drawer(
    experiment: Experiment, state: TrainState, asked: Wanted, mesh: Mesh
) -> Callable[[range], np.ndarray]:
    """What draws the samples of given indices; sample ``i`` is the same in every round."""
    settings = experiment.config.evaluate
    size = math.ceil(experiment.config.sample.batch_size / mesh.size) * mesh.size
    run, _ = sampling.compile_draw(experiment, mesh, settings.guidance)
    key = jax.random.key(evaluation_seed(settings.seed))

    def images(part: range) -> np.ndarray:
        drawn = []
        for start in range(part.start, part.stop, size):
            index = np.arange(start, start + size)
            rows = [None if each is None else each[index % len(each)] for each in asked]
            drawn.append(run(state, key, index, *rows)[: part.stop - start])
        return np.concatenate(drawn)

    return images


def _name(experiment: Experiment, state: TrainState, asked: Wanted, judge: Judge) -> str:
    """A name for the features of samples, which those drawn in another way never share."""
    config = experiment.config.to_dict()
    for field in ("number", "batch_size", "labels", "seed", "guidance"):
        del config["sample"][field]
    drawn = [config[name] for name in ("model", "network", "prediction", "sample", "sampler")]
    drawn += [config["schedule"], config["evaluate"]["guidance"], config["evaluate"]["seed"]]
    if experiment.autoencoder is not None:
        drawn.append(experiment.autoencoder.digest)
    if digest := asked.digest:
        drawn.append(digest)
    settings = json.dumps(drawn, sort_keys=True)
    return f"step{int(state.step)}-{judge.name(settings)}"
