"""Training of a noise-level predictor: which of many levels of noise is in an image?

The network of Denoising MCMC's second half, a classifier of ``x_0 + sigma_k z`` into ``k``. It
draws no samples; ``--mode evaluate`` tells how well it is calibrated, and ``diffjax.mcmc`` uses it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import state as states
from diffjax.data.images import to_float
from diffjax.mcmc import Logits
from diffjax.random import per_sample
from diffjax.state import TrainState
from diffjax.systems.base import Batch, System, gradient_update
from diffjax.typing import Array, Key

__all__ = ["NoisePredictor", "calibration", "noise_level"]


class NoisePredictor(NamedTuple):
    """A trained predictor, as Denoising MCMC uses it.

    Attributes:
        logits: ``x -> (n, levels)``, for images in [-1, 1] with noise added.
        levels: The noise levels, noisiest first.
        shape: Shape of an image.
    """

    logits: Logits
    levels: np.ndarray
    shape: tuple[int, ...]


def noise_level(
    network: nn.Module,
    levels: np.ndarray,
    *,
    optimizer: optax.GradientTransformation,
    ema_rates: Sequence[float] = (0.999,),
    ema_warmup: bool = True,
    sample_ema: str = "0.999",
    microbatches: int = 1,
    axis: str | None = None,
) -> System:
    r"""A classifier of noise levels, trained with cross-entropy.

    .. math:: -\log q(k | x_0 + \sigma_k z), \quad k \sim U\{0..K-1\}

    so that ``q(k | x)`` estimates the posterior under a prior uniform in ``log sigma``. Kim & Ye
    2023 (arXiv 2209.14593), section 4.

    Args:
        network: ``network.apply(variables, x) -> logits (n, levels)``.
        levels: Noise levels in the units of images in [-1, 1], from ``mcmc.noise_levels``.
        optimizer: Turns gradients into updates.
        ema_rates: Rates of the parameter averages kept.
        ema_warmup: Whether the averages warm up.
        sample_ema: Rate of the average that is evaluated; '' for the raw parameters.
        microbatches: Parts a batch is worked off in.
        axis: Name of the mapped axis under ``pmap``.

    Returns:
        The system; its ``evaluate(state, batch, key)`` is :func:`calibration`, its ``sample``
        None.
    """
    table = jnp.asarray(levels, jnp.float32)

    def init(key: Key, batch: Batch) -> TrainState:
        params_key, state_key = jax.random.split(key)
        variables = network.init(params_key, to_float(batch["image"][:1]))
        return states.create(state_key, variables["params"], optimizer, ema_rates)

    def loss(params, batch: Batch, slots, key: Key):
        def noised(key, image):
            level_key, noise_key = jax.random.split(key)
            k = jax.random.randint(level_key, (), 0, table.shape[0])
            return k, image + table[k] * jax.random.normal(noise_key, image.shape)

        k, x = jax.vmap(noised)(slots.keys(key), to_float(batch["image"]))
        logits = network.apply({"params": params}, x)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, k).mean()
        apart = jnp.log(table[jnp.argmax(logits, axis=-1)] / table[k])
        return value, {"log_error": jnp.sqrt(jnp.mean(apart**2))}

    def evaluate(state: TrainState, batch: Batch, key: Key) -> dict:
        params = states.select_parameters(state, sample_ema)
        return calibration(
            lambda x: network.apply({"params": params}, x), levels, to_float(batch["image"]), key
        )

    return System(
        init=init,
        update=gradient_update(
            loss, optimizer, microbatches=microbatches, ema_warmup=ema_warmup, axis=axis
        ),
        sample=None,
        evaluate=evaluate,
    )


def calibration(
    logits: Logits, levels: np.ndarray, x0: Array, key: Key, *, places: int = 9
) -> dict[str, list[float] | float]:
    r"""How far the most likely level is from the true one, at some levels.

    In ``d`` dimensions of noise a perfect judge's ``log(sigma_hat / sigma)`` has a standard
    deviation of about ``1 / sqrt(2 d)``; where the noise is no larger than the data's own spread,
    more.

    Args:
        logits: ``x -> (n, levels)``.
        levels: The levels, noisiest first.
        x0: Images to which noise is added, ``(n, ...)``.
        key: Of the noise.
        places: At how many of the levels, evenly in ``log sigma``.

    Returns:
        ``sigma``, and at each the mean (``bias``) and standard deviation (``std``) of
        ``log(sigma_hat / sigma)``; ``law``, ``1 / sqrt(2 d)``.
    """
    x0 = jnp.asarray(x0)
    chosen = np.linspace(0, len(levels) - 1, places).round().astype(int)
    logs = jnp.log(jnp.asarray(levels, jnp.float32))

    @jax.jit
    def errors(k, key):
        noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(
            per_sample(key, jnp.arange(x0.shape[0]))
        )
        apart = logs[jnp.argmax(logits(x0 + jnp.exp(logs[k]) * noise), axis=-1)] - logs[k]
        return apart.mean(), apart.std()

    found = [errors(k, jax.random.fold_in(key, k)) for k in chosen]
    return {
        "sigma": [float(levels[k]) for k in chosen],
        "bias": [float(bias) for bias, _ in found],
        "std": [float(std) for _, std in found],
        "law": float((2 * np.prod(x0.shape[1:])) ** -0.5),
    }
