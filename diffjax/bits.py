"""Bits per dimension of images held out: what ``config.evaluate.likelihood`` adds to the scores.

``ode`` is the exact density of the probability-flow ODE, of images spread evenly over their bins;
``bound`` the variational bound of the discrete chain on the integers themselves. Both are of plain
predictions, given the image's own label where the system is conditional.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffjax import data, guidance, likelihood, metrics, parallel
from diffjax.prediction import Predict, evaluations
from diffjax.random import per_sample
from diffjax.schedules import Discrete, Schedule
from diffjax.typing import Array, Key

__all__ = ["LIKELIHOODS", "Measure", "held_out_bits", "independent_pixels", "integers", "line"]

# ``(predict, images, keys, levels) -> {"bits": (n,), "nfe": ()}``, of uint8 images and a key each.
Measure = Callable[[Predict, Array, Key, int], dict[str, Array]]


def ode(schedule: Schedule, variance: str) -> Measure:
    """The ODE's density: one Rademacher probe an image, uniform dequantisation.

    Of the state at the time whose noise has the spread of the dequantisation, divided by ``alpha``;
    or at ``t_min`` where that is noisier still, as it is for 256 levels. Below that noise a network
    that has seen exact grey levels alone, few of them, gives what lies between next to no density.
    """
    del variance

    def measure(predict, images, keys, levels):
        spread, probe = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        width = 2 / (levels - 1)
        x = likelihood.dequantise(spread, centres(images, levels), width)
        t = jnp.maximum(schedule.t_min, schedule.time(-jnp.log(width / math.sqrt(12))))
        alpha = schedule.alpha(t)
        density = likelihood.log_density(schedule, predict, alpha * x, probe, t_start=t)
        nats = density.nats + math.prod(images.shape[1:]) * jnp.log(alpha)
        bits = metrics.density_bits_per_dim(nats, images.shape[1:], bin_width=width)
        return {"bits": bits, "nfe": density.nfe}

    return measure


def bound(schedule: Schedule, variance: str) -> Measure:
    """The chain's bound, one draw of the noise at every step, with ``x0`` clipped to [-1, 1]."""
    if not isinstance(schedule, Discrete):
        raise ValueError(
            "'bound' is of a discrete chain: use 'ode', or train with schedule.name "
            "'discrete_linear' or 'discrete_cosine'"
        )

    def measure(predict, images, keys, levels):
        limited = guidance.threshold(predict, schedule=schedule)
        x0 = centres(images, levels)
        found = likelihood.variational_bound(
            schedule, limited, x0, keys, variance=variance, levels=levels
        )
        return {"bits": found.total, "nfe": schedule.steps * evaluations(predict)}

    return measure


LIKELIHOODS: dict[str, Callable[[Schedule, str], Measure]] = {"bound": bound, "ode": ode}
_CONVENTIONS = {
    "bound": "variational bound of the chain on the integers, x0 clipped",
    "ode": "probability-flow ODE, uniformly dequantised over bins of 2 / {bins} of [-1, 1], from "
    "the time whose noise is as large or t_min, Hutchinson with one Rademacher probe an image",
}


def integers(images: Array, levels: int) -> Array:
    """The grey levels 0 .. ``levels - 1`` that bytes stand for."""
    return jnp.round(jnp.asarray(images, np.float32) * ((levels - 1) / 255))


def centres(images: Array, levels: int) -> Array:
    """Grey levels in [-1, 1], free of the rounding to bytes."""
    return 2 * integers(images, levels) / (levels - 1) - 1


def held_out_bits(experiment, state, train: data.ArraySource, held_out: data.ArraySource) -> dict:
    """What the report says under ``likelihood``.

    Of ``config.evaluate.likelihood_number`` images held out, drawn without repetition by
    ``config.evaluate.seed``; image ``i`` of them depends on the seed and on ``i`` alone, up to the
    tolerance of the ODE, in whose batch the worst decides on the steps.

    Args:
        experiment: What is scored, with ``config.evaluate.likelihood`` set.
        state: Its state.
        train: Real images for the model to compare with, independent Gaussian pixels.
        held_out: Images to score.
    """
    config, kind = experiment.config, experiment.config.evaluate.likelihood
    number = min(config.evaluate.likelihood_number, len(held_out))
    shuffled = np.random.default_rng(config.evaluate.seed).permutation(len(held_out))
    chosen, levels = np.sort(shuffled[:number]), held_out.levels
    images = held_out.images[chosen]
    labels = held_out.labels[chosen] if experiment.system.conditional else None
    mesh = parallel.sampling_mesh(config.parallel.fsdp)
    size = min(config.sample.batch_size, number)
    size = -(-size // mesh.size) * mesh.size

    def measure(state, key, index, images, labels):
        keys = per_sample(key, index)
        return experiment.system.measure(state, images, labels, keys, levels)

    compiled = jax.jit(measure, out_shardings=NamedSharding(mesh, PartitionSpec()))
    key, parts, calls = jax.random.key(config.evaluate.seed), [], []
    for start in range(0, number, size):
        # The last batch is as large as the others: one program serves all.
        rows = np.resize(np.arange(start, min(start + size, number)), size)
        wanted = None if labels is None else labels[rows].astype(np.int32)
        batch = (rows.astype(np.uint32), images[rows], wanted)
        found = compiled(state, key, *jax.device_put(batch, parallel.batch_sharding(mesh)))
        parts.append(np.asarray(found["bits"], np.float64)[: number - start])
        calls.append(int(found["nfe"]))
    bits = np.concatenate(parts)
    return {
        "kind": kind,
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std(ddof=1) / np.sqrt(number)) if number > 1 else 0.0,
        "images": number,
        "levels": levels,
        "nfe": max(calls),
        "convention": _CONVENTIONS[kind].format(bins=levels - 1)
        + (", given the label" if experiment.system.conditional else ""),
        "uniform": float(np.log2(levels)),
        "independent_gaussian_pixels": independent_pixels(train.images, images, levels),
    }


def independent_pixels(train: np.ndarray, images: np.ndarray, levels: int) -> float:
    """Bits per dimension of images under a Gaussian fitted to every pixel, dequantised likewise."""
    train, images = (np.asarray(integers(part, levels), np.float64) for part in (train, images))
    # Uniform noise of one bin has the variance 1 / 12; the bins are of width 1 here.
    mean, variance = train.mean(axis=0), train.var(axis=0) + 1 / 12
    squared = (images - mean) ** 2 + 1 / 12
    return float(0.5 * np.mean(np.log2(2 * np.pi * variance) + squared / variance / np.log(2)))


def line(found: dict) -> str:
    """The report for a reader."""
    return (
        f"bits per dimension: {found['bits_per_dim']:.3f} +- {found['standard_error']:.3f}, "
        f"{found['images']} images held out, {found['nfe']} network evaluations each; uniform over "
        f"{found['levels']} levels {found['uniform']:.3f}, independent Gaussian pixels "
        f"{found['independent_gaussian_pixels']:.3f}\n  ({found['kind']}: {found['convention']})"
    )
