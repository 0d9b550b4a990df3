"""What ``--mode fit`` does: a sampler of so many calls, learned for the run in a workdir."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import experiment as experiments
from diffjax.data import to_float
from diffjax.experiment import Experiment
from diffjax.prediction import Predict
from diffjax.schedules import prior
from diffjax.solvers import Recipe, Solver, learned
from diffjax.state import TrainState
from diffjax.systems import Request
from diffjax.typing import Key
from diffjax.upsampling import wanted

__all__ = ["fit", "sampling_predict"]

# Starts of a batch; fresh noise is drawn beside them.
ROWS = 256


def fit(experiment: Experiment, state: TrainState, workdir: str | os.PathLike) -> pathlib.Path:
    """Fits a sampler of ``config.sample.calls`` calls, saves it, and tells how to draw with it.

    Guidance, thresholding and labels are those of ``config.sample``.

    Returns:
        Path of the ``.npz``.

    Raises:
        ValueError: The system does not draw by a solver, or the calls are too few.
    """
    config = experiment.config.sample
    noise_key, key = jax.random.split(jax.random.key(config.seed))
    x = prior(experiment.schedule, experiment.schedule.t_max, (ROWS, *experiment.shape), noise_key)
    predict = sampling_predict(experiment, state, ROWS)
    fitted = learned.fit(predict, experiment.schedule, steps=config.calls, x_T=x, key=key)
    path = pathlib.Path(workdir, "learned", f"calls{config.calls}_guidance{config.guidance:g}.npz")
    if jax.process_index() == 0:
        learned.save(path, fitted)
        print(f"a learned sampler of {config.calls} calls: {path}")
        print(
            f"to draw with it: --config.sample.solver=learned --config.sample.options.path={path}"
        )
    return path


def sampling_predict(experiment: Experiment, state: TrainState, rows: int) -> Predict:
    """The very ``predict`` that a solver is handed when ``rows`` samples are drawn.

    Guidance, thresholding and the labels of those rows included, whatever the system: what a solver
    is given is what this one keeps.
    """
    kept: list[Predict] = []

    def step(predict, x, memory, span, key):
        kept.append(predict)
        return x, memory

    schedule, config = experiment.schedule, experiment.config.sample
    ends = jnp.asarray([schedule.t_max, schedule.t_min])
    recipe = Recipe(Solver(lambda x: (), step, evaluations=1), ends, denoise=False)
    system = experiments.SYSTEMS[experiment.config.system](experiment._replace(recipe=recipe))
    asked = wanted(experiment.config, experiment.num_classes, config.labels, rows, config.seed)
    low_res = None if asked.low_res is None else to_float(asked.low_res)
    request = Request(np.arange(rows), asked.labels, config.guidance, low_res)
    key: Key = jax.random.key(config.seed)
    system.sample(state, key, request)
    if not kept:
        raise ValueError(
            f"config.system={experiment.config.system!r} does not draw by a solver: there is no "
            "sampler to learn"
        )
    # The system is checked with abstract values first; the last is the one of these samples.
    return kept[-1]
