"""A training run small enough for tests; as a script, one that can be killed and started again."""

import functools
import sys

import ml_collections
import numpy as np
import optax

from diffjax import losses, prediction, schedules, solvers
from diffjax.data import ArraySource
from diffjax.experiment import Experiment
from diffjax.models import MLP
from diffjax.systems import System, diffusion, sampler
from diffjax.train import train

SHAPE, CLASSES = (4, 4, 1), 3


def make_config(mode="sharding", fsdp=1, seed=0, **settings) -> ml_collections.ConfigDict:
    """The part of a config that training reads."""
    defaults = dict(
        steps=6,
        batch_size=16,
        microbatches=1,
        log_every=2,
        checkpoint_every=2,
        keep_last=2,
        keep_every=0,
        sample_every=0,
    )
    return ml_collections.ConfigDict(
        dict(
            seed=seed,
            data=dict(flip=True),
            train=defaults | settings,
            parallel=dict(mode=mode, fsdp=fsdp),
            sample=dict(number=12, guidance=1.0, ema="0.9"),
        )
    )


def make_source(size=50) -> ArraySource:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(size, *SHAPE), dtype=np.uint8)
    return ArraySource(images, np.arange(size) % CLASSES, num_classes=CLASSES, name="noise")


def make_system(config, optimizer=None, axis=None) -> System:
    schedule = schedules.EDM()
    return diffusion(
        MLP(width=16, depth=1, num_classes=CLASSES, time_embedding="fourier"),
        schedule,
        prediction.parametrization("edm", sigma_data=0.5),
        objective=functools.partial(losses.weighted_x0, weighting=losses.edm_weight()),
        times=losses.log_normal_times,
        optimizer=optimizer or optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        draw=sampler(schedule, solvers.recipe("ddim", schedule, 2), SHAPE, num_classes=CLASSES),
        num_classes=CLASSES,
        ema_rates=(0.9, 0.99),
        sample_ema="0.9",
        microbatches=config.train.microbatches,
        axis=axis,
    )


def make_experiment(config=None, system=None) -> Experiment:
    config = config or make_config()
    axis = "batch" if config.parallel.mode == "pmap" else None
    system = system or make_system(config, axis=axis)
    return Experiment(config, system, make_source(), None, None, SHAPE, CLASSES)


if __name__ == "__main__":
    # python training.py WORKDIR STEPS: a checkpoint at every step, so that most kills tear one.
    train(
        make_experiment(make_config(steps=int(sys.argv[2]), checkpoint_every=1, log_every=1)),
        sys.argv[1],
    )
