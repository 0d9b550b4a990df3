"""The closing part of ``--mode demo``: pictures, scores, and what they mean."""

import json
import os
import pathlib

from diffjax import evaluation, sampling
from diffjax.experiment import Experiment
from diffjax.state import TrainState

__all__ = ["show", "training_curve"]


def show(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> None:
    """Draws, scores, plots the training, and says where everything is and what it says."""
    workdir = pathlib.Path(workdir)
    samples = sampling.sample(experiment, state, workdir)
    report = evaluation.evaluate(experiment, state, workdir)
    curve = training_curve(workdir)
    print(f"""
Look at
  {samples.with_suffix(".png")}   samples, with guidance, a column a class
  {workdir / "real_and_drawn.png"}   held-out digits on the left, samples without guidance right
  {workdir / "nearest.png"}   samples, and below each row the nearest training images
  {curve}   the loss while training
  {workdir / "evaluation.json"}   the figures above as numbers
{_meaning(report)}""")


def _meaning(report: dict) -> str:
    columns = report["distances"]
    lines = ["What the figures mean"]
    if "frechet" in columns["train_to_held_out"]:
        ratio = columns["samples_to_held_out"]["frechet"] / columns["train_to_held_out"]["frechet"]
        lines.append(
            f"  Samples are {ratio:.2f} times as far from the held-out digits as real digits are "
            "(Frechet distance);\n  1 would be as good as real."
        )
    near = report["nearest_training_image"]
    samples, held_out = near["samples"][2], near["held_out"][2]
    verdict = (
        "no nearer than real digits it has never seen: it does not copy"
        if samples >= held_out
        else f"{100 * (1 - samples / held_out):.0f} % nearer than real digits it has never seen"
    )
    lines.append(
        f"  The median sample is {samples:.3f} from the nearest training image, {verdict}."
    )
    for name, value in report.get("label_accuracy", {}).items():
        if name.startswith("guidance"):
            lines.append(
                f"  With {name}, {100 * value:.1f} % of the samples are the digit asked for."
            )
    return "\n".join(lines)


def training_curve(workdir: pathlib.Path) -> pathlib.Path:
    """Plots the loss of ``metrics.jsonl`` against the step."""
    # Imported here: it is slow to import and nothing else needs it.
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    axes.grid(alpha=0.3)
    path = workdir / "training.png"
    figure.savefig(path, dpi=120)
    return path
