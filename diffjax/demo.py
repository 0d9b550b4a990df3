"""The closing part of ``--mode demo``: pictures, scores, and what they mean."""

import os
import pathlib

import numpy as np

from diffjax import data, evaluation, sampling
from diffjax.data import images
from diffjax.experiment import Experiment
from diffjax.logging import METRICS_FILE, read_metrics
from diffjax.state import TrainState

__all__ = ["overview", "show", "training_curve"]


def show(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> None:
    """Draws, scores, plots the training, and says where everything is and what it says."""
    workdir = pathlib.Path(workdir)
    config = experiment.config
    samples = sampling.sample(experiment, state, workdir)
    report = evaluation.evaluate(experiment, state, workdir)
    curve = training_curve(workdir)
    sheet = overview(experiment, samples, workdir)
    print(f"""
Look at
  {sheet}   held-out images left, samples right, guidance {config.sample.guidance:g}
  {samples.with_suffix(".png")}   samples, guidance {config.sample.guidance:g}
  {workdir / "real_and_drawn.png"}   held-out images left, samples right, guidance \
{config.evaluate.guidance:g}
  {workdir / "nearest.png"}   samples, and below each row the nearest training images
  {curve}   the loss while training
  {workdir / evaluation.REPORT_FILE}   the figures above as numbers
{_meaning(report)}""")


def overview(experiment: Experiment, samples: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """Held-out images beside samples of the same classes, in ``overview.png``."""
    config = experiment.config.data
    held_out = data.in_memory(
        data.create_images(config.source, split="test", **config.options), 1000
    )
    with np.load(samples) as file:
        drawn, labels = file["arr_0"][:100], file.get("arr_1")
    order = np.arange(min(len(drawn), len(held_out)))
    if labels is not None and held_out.labels is not None:
        # The n-th image of each class, a class after the other as in the samples.
        places = {c: list(np.flatnonzero(held_out.labels == c)) for c in np.unique(labels)}
        order = [places[c].pop() for c in labels[: len(drawn)] if places[c]]
    path = workdir / "overview.png"
    images.save_png(path, images.side_by_side(held_out.images[order], drawn, 10))
    return path


def _meaning(report: dict) -> str:
    columns = report["distances"]
    lines = ["What the figures mean"]
    if "frechet" in columns["train_to_held_out"]:
        ratio = columns["samples_to_held_out"]["frechet"] / columns["train_to_held_out"]["frechet"]
        lines.append(
            f"  Samples are {ratio:.2f} times as far from the held-out images as real images are "
            "(Frechet distance);\n  1 would be as good as real."
        )
    near = report["nearest_training_image"]
    samples, held_out = near["samples"][2], near["held_out"][2]
    verdict = (
        "no nearer than real images it has never seen: it does not copy"
        if samples >= held_out
        else f"{100 * (1 - samples / held_out):.0f} % nearer than real images it has never seen"
    )
    lines.append(
        f"  The median sample is {samples:.3f} from the nearest training image, {verdict},\n"
        f"  and {report['nearest_held_out_image']['samples'][2]:.3f} from the nearest of those;\n  "
        "the gap between the two is what the model has learnt by heart."
    )
    for name, value in report.get("label_accuracy", {}).items():
        if name.startswith("guidance"):
            lines.append(
                f"  With {name}, {100 * value:.1f} % of the samples are of the class asked for."
            )
    return "\n".join(lines)


def training_curve(workdir: str | os.PathLike) -> pathlib.Path:
    """Plots the loss of ``metrics.jsonl`` against the step, in ``training.png``."""
    # Imported here: it is slow to import and nothing else needs it.
    from matplotlib.figure import Figure

    rows = [row for row in read_metrics(pathlib.Path(workdir, METRICS_FILE)) if "loss" in row]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    axes.grid(alpha=0.3)
    path = pathlib.Path(workdir, "training.png")
    figure.savefig(path, dpi=120)
    return path
