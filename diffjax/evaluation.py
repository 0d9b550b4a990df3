"""Scores of a trained system, each beside the score that real data get.

For small data: a small classifier trained on the real training half is the judge (see
``metrics.probe``); samples are compared with the *held-out* half, which neither the system nor the
judge has seen, and with the training half. Beside each distance stands the floor, that of the
training half from the held-out half, so that a reader can judge; and distances to the nearest
training image tell whether samples are copies.
"""

import json
import os
import pathlib

import jax
import numpy as np

from diffjax import bits, data, metrics, reference, sampling, upsampling
from diffjax.data import images as pictures
from diffjax.experiment import Experiment
from diffjax.metrics.probe import ClassifierProbe, train_classifier
from diffjax.state import TrainState

__all__ = ["REPORT_FILE", "distances", "evaluate", "evaluation_seed", "table"]

REPORT_FILE = "evaluation.json"

# Pairwise distances are computed between all images of two sets: no more than this of each.
MAX_REAL = 10_000
# Density and coverage ask for the fifth neighbour of an image among the others.
MIN_IMAGES = 6
QUANTILES = (0.05, 0.25, 0.5, 0.75)


def evaluate(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> dict:
    """Draws ``config.evaluate.number`` samples, scores them, writes ``evaluation.json``, tells.

    Also writes ``real_and_drawn.png``, real and drawn images side by side, and ``nearest.png``, the
    training image nearest to each of some samples. A system that draws nothing is scored by its own
    measures on the images held out.

    Returns:
        The report: nested dicts of numbers, as in the file.

    Raises:
        ValueError: The source has no held-out split, or too few images.
    """
    workdir, config = pathlib.Path(workdir), experiment.config
    if experiment.system.sample is None:
        return _evaluate_without_samples(experiment, state, workdir)
    settings, classes = config.evaluate, experiment.num_classes
    train, held_out = (_real(experiment, split) for split in ("train", "test"))
    _check_sizes(settings.number, train, held_out)
    probe = reference.probe(train, workdir) if train.num_classes > 1 else None
    # As many of each: chance would count as a distance.
    asked = upsampling.wanted(config, classes, "cycle", settings.number)
    drawn = sampling.draw(
        experiment,
        state,
        number=settings.number,
        **asked._asdict(),
        guidance=settings.guidance,
        seed=evaluation_seed(settings.seed),
        progress="drawing samples to score",
    )
    seen, unseen, samples = map(_float, (train.images, held_out.images, drawn.images))
    report = {
        "step": int(state.step),
        "samples": settings.number,
        "nfe": drawn.nfe,
        "guidance": settings.guidance,
        "real": {"train": len(seen), "held_out": len(unseen)},
        "features": probe.convention if probe else "none: the data have no labels",
        "distances": {
            "samples_to_held_out": distances(probe, unseen, samples),
            "samples_to_train": distances(probe, seen, samples),
            "train_to_held_out": distances(probe, unseen, seen),
        },
        "nearest_training_image": {
            "quantiles": list(QUANTILES),
            "samples": _nearest(seen, samples),
            "held_out": _nearest(seen, unseen),
        },
        # A copy is nearer to what it was copied from: samples of a model that does not copy are
        # about as far from images it has not seen as from those it has.
        "nearest_held_out_image": {
            "quantiles": list(QUANTILES),
            "samples": _nearest(unseen, samples),
        },
    }
    if probe:
        logits = {"samples": probe.logits(samples), "held_out": probe.logits(unseen)}
        # The published scores have 10 splits of 50,000; the fewer in a split, the lower the score.
        splits = 10 if min(map(len, logits.values())) >= 5000 else 1
        shuffle = np.random.default_rng(0).permutation  # data may be sorted by class
        report["inception_score"] = {
            name: metrics.inception_score(shuffle(each), splits=splits).mean
            for name, each in logits.items()
        }
    if probe and classes:
        report["label_accuracy"] = _label_accuracy(
            experiment, state, probe, drawn, asked.low_res, held_out
        )
        if (samples != samples[0]).any():  # a collapsed network's pictures teach nothing
            judge = train_classifier(samples, drawn.labels, classes)
            report["classifier_trained_on"] = {
                "samples": metrics.accuracy(judge.logits(unseen), held_out.labels),
                "train": metrics.accuracy(logits["held_out"], held_out.labels),
            }
    if settings.likelihood:
        report["likelihood"] = bits.held_out_bits(experiment, state, train, held_out)
    if jax.process_index() == 0:
        _write_pictures(workdir, drawn.images, train.images, held_out.images)
        (workdir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        print(table(report))
        print(f"as numbers: {workdir / REPORT_FILE}")
    return report


def _evaluate_without_samples(
    experiment: Experiment, state: TrainState, workdir: pathlib.Path
) -> dict:
    """The report of a system that draws none: what it measures itself, on images held out."""
    held_out = _real(experiment, "test")
    key = jax.random.key(evaluation_seed(experiment.config.evaluate.seed))
    batch = {"image": held_out.images, "label": held_out.labels}
    measured = experiment.system.evaluate(state, batch, key)
    report = {"step": int(state.step), "held_out": len(held_out), **measured}
    if jax.process_index() == 0:
        (workdir / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        for name, value in report.items():
            values = value if isinstance(value, list) else [value]
            print(f"{name:12}" + "".join(f"{number:10.4g}" for number in values))
        print(f"as numbers: {workdir / REPORT_FILE}")
    return report


def distances(probe: ClassifierProbe | None, real: np.ndarray, other: np.ndarray) -> dict:
    """All distances of one set of images from a real one.

    Args:
        probe: The judge whose features the Frechet distance, KID, precision and recall use; None
            leaves those out.
        real: Floats in [-1, 1], ``(n, H, W, C)``.
        other: Floats in [-1, 1], ``(m, H, W, C)``.

    Returns:
        Values by name, with the sizes of both sets. Pixel distances are on the [0, 1] scale.
    """
    values = {"n": [len(real), len(other)]}
    if probe:
        first, second = probe.features(real), probe.features(other)
        subset = min(800, len(real), len(other))
        kid = metrics.kernel_distance(
            first, second, jax.random.key(0), subsets=20, subset_size=subset
        )
        manifold = metrics.precision_recall(first, second)
        covered = metrics.density_coverage(first, second)
        bias = metrics.frechet_bias(np.cov(first.T), len(first), len(second))
        values |= {
            "frechet": metrics.frechet_distance(first, second),
            "frechet_bias": bias,
            "kid": kid.mean,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "density": covered.density,
            "coverage": covered.coverage,
        }
    pixels = [(images.reshape(len(images), -1) + 1) / 2 for images in (real, other)]
    values["energy"] = metrics.energy_distance(*pixels)
    values["sliced_wasserstein"] = metrics.sliced_wasserstein(*pixels, jax.random.key(0))
    return values


def table(report: dict) -> str:
    """The report for a reader: what each figure is, beside what real data get."""
    names = {
        "frechet": "Frechet distance of features",
        "kid": "KID of features",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
        "energy": "energy distance of pixels",
        "sliced_wasserstein": "sliced Wasserstein^2 of pixels",
    }
    columns = report["distances"]
    lines = [
        f"{report['samples']} samples of step {report['step']}, {report['nfe']} network "
        f"evaluations each, guidance {report['guidance']:g}; features: {report['features']}",
        f"{'':32}{'to held-out':>14}{'to training':>14}{'floor':>12}",
    ]
    for name, title in names.items():
        if name in columns["train_to_held_out"]:
            values = [columns[c][name] for c in columns]
            lines.append(f"{title:32}{values[0]:14.4g}{values[1]:14.4g}{values[2]:12.4g}")
    lines.append("floor: training half to held-out half, what real images get")
    near = report["nearest_training_image"]
    lines.append(
        "distance to the nearest training image, median: "
        f"samples {near['samples'][2]:.3f}, held-out images {near['held_out'][2]:.3f}; "
        "to the nearest held-out image: "
        f"samples {report['nearest_held_out_image']['samples'][2]:.3f}"
    )
    if "inception_score" in report:
        score = report["inception_score"]
        lines.append(
            f"inception score: samples {score['samples']:.2f}, held-out {score['held_out']:.2f}"
        )
    for name, value in report.get("label_accuracy", {}).items():
        lines.append(f"classified as their label: {name} {100 * value:.1f} %")
    if "classifier_trained_on" in report:
        trained = report["classifier_trained_on"]
        lines.append(
            "held-out accuracy of a classifier trained on samples "
            f"{100 * trained['samples']:.1f} %, on the training half {100 * trained['train']:.1f} %"
        )
    if "likelihood" in report:
        lines.append(bits.line(report["likelihood"]))
    return "\n".join(lines)


def _real(experiment: Experiment, split: str) -> data.ArraySource:
    config = experiment.config.data
    try:
        source = data.create_images(config.source, split=split, **config.options)
    except ValueError as error:
        if split == "train":
            raise
        raise ValueError(f"scores compare samples with images held out, but {error}") from error
    return data.in_memory(source, MAX_REAL)


def _check_sizes(number: int, train: data.ArraySource, held_out: data.ArraySource) -> None:
    """Raises ValueError where the scores by nearest neighbours cannot be computed."""
    sizes = {
        "config.evaluate.number is": number,
        "the training images are": len(train),
        "the images held out are": len(held_out),
    }
    for what, size in sizes.items():
        if size < MIN_IMAGES:
            raise ValueError(
                f"scores need at least {MIN_IMAGES} images of a kind, but {what} {size}"
            )


def _float(images: np.ndarray) -> np.ndarray:
    return np.asarray(data.to_float(images))


def evaluation_seed(seed: int) -> int:
    """Of the samples scored, apart from any that ``--mode sample`` draws to be looked at."""
    return 2**31 + seed


def _nearest(train: np.ndarray, images: np.ndarray) -> list[float]:
    """Quantiles of the distance to the nearest training image, on the [0, 1] scale of pixels."""
    found = metrics.nearest_neighbours(train / 2, images / 2)
    return [float(q) for q in np.quantile(found.distances[:, 0], QUANTILES)]


def _label_accuracy(
    experiment: Experiment,
    state: TrainState,
    probe: ClassifierProbe,
    drawn: sampling.Drawn,
    low_res: np.ndarray | None,
    held_out: data.ArraySource,
) -> dict[str, float]:
    """Share of images that the judge gives the label asked for, without and with guidance."""
    settings, guidance = experiment.config.evaluate, experiment.config.sample.guidance
    sets = {f"guidance {settings.guidance:g}": (drawn.images, drawn.labels)}
    if guidance != settings.guidance:
        guided = sampling.draw(
            experiment,
            state,
            number=settings.number,
            labels=drawn.labels,
            low_res=low_res,
            guidance=guidance,
            seed=evaluation_seed(settings.seed),
            progress=f"drawing samples with guidance {guidance:g}",
        )
        sets[f"guidance {guidance:g}"] = (guided.images, drawn.labels)
    sets["real, held-out"] = (held_out.images, held_out.labels)
    return {
        name: metrics.accuracy(probe.logits(_float(images)), labels)
        for name, (images, labels) in sets.items()
    }


def _write_pictures(
    workdir: pathlib.Path, drawn: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> None:
    size = min(100, len(drawn), len(held_out))
    both = pictures.side_by_side(held_out[:size], drawn[:size], 10)
    pictures.save_png(workdir / "real_and_drawn.png", both)
    # Each row of samples above the row of their nearest training images.
    columns = min(20, len(drawn))
    some = drawn[: columns * min(2, len(drawn) // columns)]
    found = metrics.nearest_neighbours(_float(train), _float(some)).indices[:, 0]
    rows = [
        half[start : start + columns]
        for start in range(0, len(some), columns)
        for half in (some, train[found])
    ]
    sheet = pictures.contact_sheet(np.concatenate(rows), columns)
    pictures.save_png(workdir / "nearest.png", sheet)
