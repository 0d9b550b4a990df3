"""A classifier of noisy images, whose gradient guides a diffusion model to a class.

It must know the noise it will meet: a clean classifier's gradients on noisy images are adversarial,
not informative. It knows nothing of the model it will guide, not even its schedule: a state is
brought to the classifier's own process by its noise level. Dhariwal & Nichol 2021, section 4.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import state as states
from diffjax.data.images import to_float
from diffjax.losses import Slots
from diffjax.prediction import Parametrization
from diffjax.random import per_sample
from diffjax.schedules import Schedule, expand, half_log_snr, perturb
from diffjax.state import TrainState
from diffjax.systems.base import Batch, System, gradient_update
from diffjax.typing import Array, Key

__all__ = ["NoisyClassifier", "judge", "noisy_classifier"]

LEVELS = 8  # noise levels at which a classifier is scored


class NoisyClassifier(NamedTuple):
    """A trained classifier, as guidance uses it.

    Attributes:
        log_probabilities: ``(x, t) -> log p(y | x_t)``, ``(n, classes)``, of its own process.
        schedule: The process it was trained on.
        shape: Shape of an image.
        num_classes: How many classes it tells apart.
    """

    log_probabilities: Callable[[Array, Array], Array]
    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int

    def log_probability(self, schedule: Schedule, x: Array, t: Array, labels: Array) -> Array:
        r"""``log p(y | x_t)`` for a state of any process, ``(n,)``.

        .. math:: x' = \frac{\alpha'_{t'}}{\alpha_t} x, \quad \lambda'_{t'} = \lambda_t

        is the same state in the classifier's own process.

        Args:
            schedule: The process that ``x`` is a state of.
            x: States ``(n, ...)``.
            t: Their time, ``()`` or ``(n,)``.
            labels: Classes ``(n,)``.
        """
        own = self.schedule.time(half_log_snr(schedule, t))
        state = expand(self.schedule.alpha(own) / schedule.alpha(t), x) * x
        return jnp.take_along_axis(self.log_probabilities(state, own), labels[:, None], 1)[:, 0]


def noisy_classifier(
    network: nn.Module,
    schedule: Schedule,
    parametrization: Parametrization,
    *,
    times: Callable[[Schedule, Key, Slots], Array],
    optimizer: optax.GradientTransformation,
    ema_rates: Sequence[float] = (),
    ema_warmup: bool = True,
    sample_ema: str = "",
    microbatches: int = 1,
    axis: str | None = None,
) -> System:
    r"""Trains by the cross-entropy of classes given noisy images.

    .. math:: L = -\log p(y | x_t, t)

    It draws no images: ``sample`` is None. ``evaluate`` gives its accuracy by noise level.

    Args:
        network: Called as ``network.apply(variables, x, label, train=..., rngs=...)``; gives logits
            ``(n, classes)``.
        schedule: The forward process.
        parametrization: How the network is told the time, and in what scale it sees images.
        times: ``(schedule, key, slots) -> t (n,)``, from ``losses``.
        optimizer: Turns gradients into updates.
        ema_rates: Rates of the parameter averages kept; the published classifiers keep none.
        ema_warmup: Whether the averages warm up.
        sample_ema: Rate of the average that is used and scored; '' for the raw parameters.
        microbatches: Parts a batch is worked off in.
        axis: Name of the mapped axis under ``pmap``.
    """

    def init(key: Key, batch: Batch) -> TrainState:
        params_key, state_key = jax.random.split(key)
        label = parametrization.label(schedule, jnp.full((1,), schedule.t_max))
        variables = network.init(params_key, to_float(batch["image"][:1]), label)
        return states.create(state_key, variables["params"], optimizer, ema_rates)

    def loss(params, batch: Batch, slots: Slots, key: Key):
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x0, labels = to_float(batch["image"]), batch["label"]
        t = times(schedule, time_key, slots)
        noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(slots.keys(noise_key))
        rngs = {"dropout": jax.random.fold_in(dropout_key, slots.index[0])}
        x = perturb(schedule, x0, t, noise)
        logits = _logits(network, params, schedule, parametrization, x, t, train=True, rngs=rngs)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean(), {"accuracy": (logits.argmax(-1) == labels).mean()}

    def evaluate(state: TrainState, batch: Batch, key: Key) -> dict[str, list[float]]:
        """Accuracy at some noise levels ``sigma / alpha``, evenly spaced in their logarithm."""
        params = states.select_parameters(state, sample_ema)
        classify = judge(network, params, schedule, parametrization)
        x0 = to_float(batch["image"])
        ends = (float(half_log_snr(schedule, t)) for t in (schedule.t_min, schedule.t_max))
        lams = np.linspace(*ends, LEVELS)

        @jax.jit
        def accuracy(lam: Array, key: Key) -> Array:
            t = schedule.time(lam)
            noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(
                per_sample(key, jnp.arange(len(x0)))
            )
            found = classify(perturb(schedule, x0, t, noise), t).argmax(-1)
            return (found == batch["label"]).mean()

        keys = jax.random.split(key, LEVELS)
        right = [float(accuracy(jnp.asarray(lam), k)) for lam, k in zip(lams, keys, strict=True)]
        return {"noise": [float(noise) for noise in np.exp(-lams)], "accuracy": right}

    return System(
        init=init,
        update=gradient_update(
            loss, optimizer, microbatches=microbatches, ema_warmup=ema_warmup, axis=axis
        ),
        sample=None,
        evaluate=evaluate,
        conditional=True,
    )


def judge(
    network: nn.Module, params, schedule: Schedule, parametrization: Parametrization
) -> Callable[[Array, Array], Array]:
    """``(x, t) -> log p(y | x_t)``, ``(n, classes)``, of a network with trained parameters."""

    def log_probabilities(x: Array, t: Array) -> Array:
        logits = _logits(network, params, schedule, parametrization, x, t)
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    return log_probabilities


def _logits(network, params, schedule, parametrization, x, t, *, train=False, rngs=None) -> Array:
    label = jnp.broadcast_to(parametrization.label(schedule, t), x.shape[:1])
    scaled = expand(parametrization.scale(schedule, t), x) * x
    return network.apply({"params": params}, scaled, label, train=train, rngs=rngs)
