"""Fidelity against diversity, over the strength of guidance: with and without a classifier.

Trains three runs on digits where they are not there yet (a conditional model, an unconditional one,
a classifier of noisy images), draws as many samples at every scale with each kind of guidance, and
scores them: share classified as the label asked for and precision (fidelity), recall and Frechet
distance to the held-out half (diversity). One axis for all kinds: scale ``s`` goes from ``p(x)`` to
``p(x) p(y|x)^s``, 1 being the plain conditional model. Prints a table and draws the curves.

    python benchmarks/guidance.py --workdir runs/guidance --picture docs/guidance.png
"""

import json
import os
import pathlib
import sys

import numpy as np
from side_by_side import facts, header, parser, row, train_run

from diffjax import checkpoint, data, evaluation, metrics, parallel, reference
from diffjax.experiment import Experiment, build, sample_labels
from diffjax.sampling import draw
from diffjax.serving import load_classifier
from diffjax.train import state_shapes
from diffjax.workdir import load_config

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SCORES = ("accuracy", "precision", "recall", "frechet")
DEFAULT, GUIDE = "configs/digits/default.py", "configs/digits/guidance.py"
RUNS = {
    "conditional": (DEFAULT,),
    "unconditional": (
        DEFAULT,
        "--config.data.conditional=False",
        "--config.sample.guidance=1.0",
    ),
    "classifier": (GUIDE,),
}
# The run drawn from, and whether the classifier guides it.
KINDS = {
    "classifier-free": ("conditional", False),
    "classifier, conditional model": ("conditional", True),
    "classifier, unconditional model": ("unconditional", True),
}


def train_missing(workdir: pathlib.Path, quick: bool) -> None:
    """Trains each run that is not there yet."""
    for name, (config, *overrides) in RUNS.items():
        train_run(workdir / name, f"{config}:quick" if quick else config, *overrides)


def opened(workdir: pathlib.Path, run: str, guided: bool) -> tuple[Experiment, object]:
    """An experiment and its newest state."""
    config = load_config(workdir / run)
    classifier = None
    if guided:
        config.sample.classifier = os.fspath(workdir / "classifier")
        classifier = load_classifier(config.sample.classifier)
    made = build(config, classifier=classifier)
    mesh = parallel.sampling_mesh(config.parallel.fsdp)
    return made, checkpoint.restore_for_sampling(workdir / run, state_shapes(made, mesh))


def curve(
    workdir: pathlib.Path, kind: str, scales: tuple[float, ...], number: int, seeds: range
) -> dict[str, np.ndarray]:
    """Scores of a kind of guidance, ``(scales, seeds)`` by name."""
    run, guided = KINDS[kind]
    made, state = opened(workdir, run, guided)
    source = made.config.data.source
    train, held_out = (data.in_memory(data.create(source, split=s)) for s in ("train", "test"))
    judge = reference.probe(train, workdir)
    real = np.asarray(data.to_float(held_out.images))
    labels = sample_labels("cycle", number, made.num_classes)
    found: dict[str, list] = {name: [] for name in SCORES}
    for scale in scales:
        values = []
        for seed in seeds:
            drawn = draw(made, state, number=number, labels=labels, guidance=scale, seed=seed)
            samples = np.asarray(data.to_float(drawn.images))
            scores = evaluation.distances(judge, real, samples)
            scores["accuracy"] = metrics.accuracy(judge.logits(samples), labels)
            values.append(scores)
        for name in SCORES:
            found[name].append([scores[name] for scores in values])
        print(f"{kind}, scale {scale:g}: {drawn.nfe} evaluations a sample", file=sys.stderr)
    return {name: np.asarray(values) for name, values in found.items()}


def table(curves: dict[str, dict[str, np.ndarray]], scales: tuple[float, ...]) -> str:
    """Means over the seeds and half their range, a line for each kind and scale."""
    lines = [header(["guidance", "scale", *SCORES])]
    for kind, scores in curves.items():
        for at, scale in enumerate(scales):
            cells = [
                f"{scores[name][at].mean():.3f} ± {np.ptp(scores[name][at]) / 2:.3f}"
                for name in SCORES
            ]
            lines.append(row([kind, f"{scale:g}", *cells]))
    return "\n".join(lines)


def plot(
    curves: dict[str, dict[str, np.ndarray]], scales: tuple[float, ...], path: pathlib.Path
) -> None:
    """Each score over the scale, and precision over recall as ADM's paper shows it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    panels = ("accuracy", "recall", "frechet")
    for kind, scores in curves.items():
        for axis, name in zip(axes, panels, strict=False):
            low, high = scores[name].min(axis=1), scores[name].max(axis=1)
            axis.plot(scales, scores[name].mean(axis=1), marker="o", markersize=3, label=kind)
            axis.fill_between(scales, low, high, alpha=0.2)
        means = {name: scores[name].mean(axis=1) for name in ("recall", "precision")}
        axes[3].plot(means["recall"], means["precision"], marker="o", markersize=3)
    for axis, name in zip(axes, panels, strict=False):
        axis.set(xlabel="guidance scale s", ylabel=name, xscale="log")
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.minorticks_off()
    axes[0].legend(fontsize="small")
    axes[3].set(xlabel="recall", ylabel="precision")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Trains what is missing, prints the table and says where the picture is."""
    made = parser(__doc__)
    made.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/guidance"))
    made.add_argument(
        "--picture", type=pathlib.Path, help="where to draw; in the workdir if not given"
    )
    made.add_argument("--seeds", type=int, default=3, help="sets of samples at every scale")
    options = made.parse_args()
    workdir = options.workdir.resolve()
    scales, number = ((1.0, 4.0), 100) if options.quick else (SCALES, 1500)
    train_missing(workdir, options.quick)
    # Not the seeds that evaluations draw with.
    seeds = range(2**30, 2**30 + options.seeds)
    curves = {kind: curve(workdir, kind, scales, number, seeds) for kind in KINDS}
    picture = options.picture or workdir / "guidance.png"
    plot(curves, scales, picture)
    (workdir / "guidance.json").write_text(
        json.dumps(
            {kind: {n: v.tolist() for n, v in scores.items()} for kind, scores in curves.items()}
        )
    )
    print(f"{facts()}\n{number} samples, {options.seeds} seeds\n\n{table(curves, scales)}\n")
    print(f"as a picture: {picture}")


if __name__ == "__main__":
    main()
