"""Training runs small enough for tests; as a script, one that can be killed and started again."""

import functools
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from diffjax import losses, parallel, prediction, schedules, solvers, systems
from diffjax import state as states
from diffjax.checkpoint import Checkpoints
from diffjax.data import ArraySource, to_float
from diffjax.experiment import Experiment
from diffjax.models import MLP
from diffjax.systems import Samples, System
from diffjax.train import state_shapes, train

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
            data=dict(flip=True, low_res=0),
            train=defaults | settings,
            parallel=dict(mode=mode, fsdp=fsdp),
            sample=dict(number=13, batch_size=13, guidance=1.0, ema="0.9"),
        )
    )


def often(steps) -> ml_collections.ConfigDict:
    """Checkpoints at every step, so that most kills hit one half written."""
    return make_config(steps=steps, checkpoint_every=1, log_every=1)


def make_source(size=50) -> ArraySource:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(size, *SHAPE), dtype=np.uint8)
    return ArraySource(images, np.arange(size) % CLASSES, num_classes=CLASSES, name="noise")


def optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def diffusion(config, axis=None) -> System:
    """The standard system with a very small network."""
    schedule = schedules.EDM()
    return systems.diffusion(
        MLP(width=16, depth=1, num_classes=CLASSES, time_embedding="fourier"),
        schedule,
        prediction.parametrization("edm", sigma_data=0.5),
        objective=functools.partial(losses.weighted_x0, weighting=losses.edm_weight()),
        times=losses.log_normal_times,
        optimizer=optimizer(),
        draw=systems.sampler(
            schedule, solvers.recipe("ddim", schedule, 2), SHAPE, num_classes=CLASSES
        ),
        num_classes=CLASSES,
        ema_rates=(0.9, 0.99),
        sample_ema="0.9",
        microbatches=config.train.microbatches,
        axis=axis,
    )


def mean_image(config, axis=None) -> System:
    """Learns the mean image, quick to compile; draws an image as grey as its label."""

    def init(key, batch):
        params = {"mean": jnp.zeros(batch["image"].shape[1:])}
        return states.create(key, params, optimizer(), (0.9,))

    def loss(params, batch, slots, key):
        shift = jax.vmap(jax.random.uniform)(slots.keys(key))[:, None, None, None]
        error = params["mean"] + 0.1 * shift - to_float(batch["image"])
        return jnp.mean(error**2), {}

    def sample(state, key, request):
        grey = request.labels / CLASSES * 2 - 1
        drawn = jnp.broadcast_to(grey[:, None, None, None], (*grey.shape, *SHAPE))
        return Samples(drawn + 0 * state.ema["0.9"]["mean"], request.labels, 1)

    update = systems.gradient_update(
        loss, optimizer(), microbatches=config.train.microbatches, axis=axis
    )
    return System(init, update, sample, conditional=True)


def make_experiment(config=None, system=mean_image) -> Experiment:
    config = config or make_config()
    axis = "batch" if config.parallel.mode == "pmap" else None
    return Experiment(config, system(config, axis), make_source(), None, None, SHAPE, CLASSES)


def restore(experiment, workdir) -> states.TrainState:
    """The newest state of a run, its key as numbers, on the host."""
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    with Checkpoints(workdir) as checkpoints:
        return on_host(checkpoints.restore_latest(state_shapes(experiment, mesh)))


def on_host(state) -> states.TrainState:
    """Arrays that can be compared: typed keys become numbers."""
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def environment(devices: int) -> dict[str, str]:
    """For a script in a process of its own, which compiles as this one does: to the same bits."""
    paths = [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    count = "--xla_force_host_platform_device_count"
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(count)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_FLAGS": " ".join([*flags, f"{count}={devices}"]),
    }


if __name__ == "__main__":
    train(make_experiment(often(int(sys.argv[2]))), sys.argv[1])  # training.py WORKDIR STEPS
