"""The optimiser of an experiment: any of optax's, at a scheduled rate, behind clipping."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from diffjax.options import about, keywords, unknown

__all__ = ["learning_rate", "optimizer"]


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """The rate by step: a linear warm-up, then the decay, which reaches 0 with the last step."""
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    rest = max(config.train.steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
    }[config.optimizer.decay]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The named optimiser of optax at the scheduled rate, behind the clipping of gradients."""
    name = config.optimizer.name
    make = getattr(optax, name, None)
    if not _is_optimizer(make):
        named = [
            entry
            for entry in dir(optax)
            if not entry.startswith(("_", "scale_by")) and _is_optimizer(getattr(optax, entry))
        ]
        raise unknown("config.optimizer.name: optax has no optimiser", name, named)
    options = keywords(
        "optimizer.options", make, config.optimizer.options, reserved=("learning_rate",)
    )
    with about("optimizer"):
        try:
            transformation = make(learning_rate(config), **options)
            params = {"w": jnp.zeros((2, 2))}
            state = jax.eval_shape(transformation.init, params)
            jax.eval_shape(transformation.update, params, state, params)
        except TypeError as error:
            raise ValueError(f"{name} with {options} cannot be used: {error}") from error
    if not config.optimizer.clip_norm:
        return transformation
    return optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), transformation)


def _is_optimizer(make: Any) -> bool:
    return inspect.isfunction(make) and "learning_rate" in inspect.signature(make).parameters
