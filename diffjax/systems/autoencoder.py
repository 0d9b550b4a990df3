"""Training of the autoencoder in whose latents another system is trained, and a trained one.

It draws no samples: what it has learned is read from its reconstructions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import state as states
from diffjax.data.images import to_float
from diffjax.losses import Slots
from diffjax.random import normal
from diffjax.state import TrainState
from diffjax.systems.base import Batch, System, gradient_update
from diffjax.typing import Array, Key

__all__ = ["ERRORS", "Autoencoder", "Reconstruction", "autoencoder", "latents", "reconstruction"]

Reconstruction = Callable[[Array, Array, Any], Array]

# How a pixel's error counts.
ERRORS = {"l1": jnp.abs, "l2": jnp.square}

CHUNK = 64  # images that are scored at a time


class Autoencoder(NamedTuple):
    """A trained autoencoder, as what stands on its latents uses it.

    Attributes:
        network: ``network.apply({'params': params}, x, method='encode')`` is a Gaussian,
            ``(..., z, method='decode')`` images.
        params: Its parameters. Pass them through ``jit`` as an argument: there are many.
        shape: Shape of the images that it was made for; others may do.
        scale: Factor on its latents that goes with it; 0 where it has none, and the spread of the
            latents of some data gives it.
        digest: Tells its weights from all others.
    """

    network: nn.Module
    params: Any
    shape: tuple[int, int, int]
    scale: float
    digest: str


def latents(scale: float) -> Callable[[Array, Array], Array]:
    r"""What stored moments of an encoded image are to a system: a fresh draw at every visit.

    .. math:: x_0 = s\,(\mu + e^{\log\sigma^2 / 2} z)

    Args:
        scale: ``s``, which makes the variance about 1.

    Returns:
        ``(moments, keys) -> x0``: of ``(n, h, w, 2 c)``, means and then log variances, and a key
        each, latents ``(n, h, w, c)``.
    """

    def draw(moments: Array, keys: Array) -> Array:
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return scale * (mean + jnp.exp(log_variance / 2) * normal(keys, mean.shape))

    return draw


def reconstruction(
    x: Array, decoded: Array, posterior: Any, *, error: str = "l1", kl: float = 1e-6
) -> Array:
    r"""The loss of an image, a pixel.

    .. math:: \frac1D \left( \sum_i |x_i - \hat x_i|^p + w\, KL(q(z|x) \| N(0, I)) \right)

    With ``p = 1`` and ``w = 1e-6`` the first two terms of Rombach et al. 2022 (appendix G) over the
    number ``D`` of pixel values; there a perceptual and an adversarial one are added.

    Args:
        x: Images, ``(n, height, width, channels)``.
        decoded: Their reconstructions.
        posterior: The ``models.Posterior`` that they were encoded as.
        error: ``'l1'`` or ``'l2'``, for ``p`` of 1 or 2.
        kl: ``w``.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: There is no such error, or ``kl`` is negative.
    """
    if error not in ERRORS or kl < 0:
        raise ValueError(f"reconstruction: error must be l1 or l2 and kl >= 0, got {error}, {kl}")
    pixels = ERRORS[error](x - decoded).mean(axis=(1, 2, 3))
    return pixels + kl * posterior.kl() / np.prod(x.shape[1:])


def autoencoder(
    network: nn.Module,
    *,
    objective: Reconstruction = reconstruction,
    optimizer: optax.GradientTransformation,
    ema_rates: Sequence[float] = (0.999,),
    ema_warmup: bool = True,
    sample_ema: str = "0.999",
    microbatches: int = 1,
    axis: str | None = None,
) -> System:
    """A variational autoencoder, trained to give images back from draws of their latents.

    ``evaluate`` tells, of images held out: ``psnr`` in dB, of reconstructions from the means, on
    average over images; ``kl`` in nats an image; ``latent_std``, the standard deviation over
    all entries of the latents' draws; and ``scale``, its inverse.

    Args:
        network: An autoencoder such as ``models.AutoencoderKL``.
        objective: ``(x, decoded, posterior) -> loss (n,)``.
        optimizer: Turns gradients into updates.
        ema_rates: Rates of the parameter averages kept.
        ema_warmup: Whether the averages warm up.
        sample_ema: Rate of the average that is used and scored; '' for the raw parameters.
        microbatches: Parts a batch is worked off in.
        axis: Name of the mapped axis under ``pmap``.
    """

    def init(key: Key, batch: Batch) -> TrainState:
        params_key, state_key = jax.random.split(key)
        variables = network.init(params_key, to_float(batch["image"][:1]))
        return states.create(state_key, variables["params"], optimizer, ema_rates)

    def loss(params, batch: Batch, slots: Slots, key: Key):
        x = to_float(batch["image"])
        posterior = network.apply({"params": params}, x, method="encode")
        z = posterior.sample(slots.keys(key))
        decoded = network.apply({"params": params}, z, method="decode")
        metrics = {"kl": posterior.kl().mean(), "squared_error": jnp.square(x - decoded).mean()}
        return objective(x, decoded, posterior).mean(), metrics

    @jax.jit
    def measures(params, images: Array) -> dict[str, Array]:
        x = to_float(images)
        posterior = network.apply({"params": params}, x, method="encode")
        decoded = network.apply({"params": params}, posterior.mean, method="decode")
        error = jnp.square(x - jnp.clip(decoded, -1, 1)).mean(axis=(1, 2, 3))
        second = jnp.square(posterior.mean) + jnp.exp(posterior.log_variance)
        return {
            "psnr": 10 * jnp.log10(4 / error),
            "kl": posterior.kl(),
            "first": posterior.mean.mean(axis=(1, 2, 3)),
            "second": second.mean(axis=(1, 2, 3)),
        }

    def evaluate(state: TrainState, batch: Batch, key: Key) -> dict[str, float]:
        del key  # nothing is drawn
        params, images = states.select_parameters(state, sample_ema), batch["image"]
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        parts = jax.device_get([measures(params, chunk) for chunk in chunks])
        found = {
            name: np.concatenate([p[name] for p in parts]).mean(dtype=np.float64)
            for name in parts[0]
        }
        std = np.sqrt(found["second"] - found["first"] ** 2)
        report = {"psnr": found["psnr"], "kl": found["kl"], "latent_std": std, "scale": 1 / std}
        return {name: float(value) for name, value in report.items()}

    return System(
        init=init,
        update=gradient_update(
            loss, optimizer, microbatches=microbatches, ema_warmup=ema_warmup, axis=axis
        ),
        sample=None,
        evaluate=evaluate,
    )
