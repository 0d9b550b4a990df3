"""Denoising losses: what is regressed, how noise levels are weighted, and how times are drawn.

Three independent choices, each a pure function. The *target* is one of the quantities of
``prediction.py``, regressed as it is (``'eps'``: DDPM's simple loss); or a *weighting*, a function
of half log SNR, multiplies the squared error of ``x0``, of which every regression is a special
case. The *times* come from a sampler.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import likelihood, prediction
from diffjax.prediction import Predict, Prediction
from diffjax.random import fold_in
from diffjax.schedules import Discrete, Schedule, expand, half_log_snr, perturb
from diffjax.typing import Array, Key

__all__ = [
    "TARGETS",
    "TIMES",
    "WEIGHTINGS",
    "discrete_times",
    "edm_weight",
    "eps_weight",
    "hybrid",
    "log_normal_times",
    "min_snr_weight",
    "regression",
    "sigmoid_weight",
    "stratified_times",
    "uniform_times",
    "v_weight",
    "variational",
    "weighted_x0",
]

Weighting = Callable[[Array], Array]

TARGETS = {
    "eps": prediction.to_eps,
    "flow": prediction.to_velocity,
    "score": prediction.to_score,
    "v": prediction.to_v,
    "x0": prediction.to_x0,
}


def regression(
    predict: Predict, schedule: Schedule, x0: Array, t: Array, noise: Array, target: str = "eps"
) -> Array:
    r"""Mean squared error of the target, unweighted ("simple").

    .. math:: L_i = \mathrm{mean}\, (y(\hat x_0, \hat\epsilon) - y(x_0, \epsilon))^2, \quad
              x_t = \alpha x_0 + \sigma\epsilon

    Ho et al. 2020, eq. (14) for ``eps``. One network call.

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        x0: Clean samples, ``(batch, ...)``.
        t: Times, ``()`` or ``(batch,)``.
        noise: Standard normal, of ``x0``'s shape.
        target: A key of ``TARGETS``.

    Returns:
        The loss of each sample, ``(batch,)``: a mean over its dimensions.

    Raises:
        ValueError: The target is unknown.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown loss target {target!r}: choose one of {', '.join(TARGETS)}")
    read = TARGETS[target]
    predicted = predict(perturb(schedule, x0, t, noise), t)
    error = read(schedule, t, predicted) - read(schedule, t, Prediction(x0, noise))
    return _mean_square(error)


def variational(
    predict: Predict,
    schedule: Discrete,
    x0: Array,
    t: Array,
    noise: Array,
    *,
    variance: str = "learned",
) -> Array:
    """The variational bound of a chain, ``N`` times one of its terms: bits per dimension.

    One network call. Arguments and result as for :func:`regression`, the times being the chain's
    own; ``variance`` as for :func:`diffjax.likelihood.bound_term`. Ho et al. 2020, eq. (5).
    """
    predicted = predict(perturb(schedule, x0, t, noise), t)
    return schedule.steps * _bound_term(schedule, predicted, x0, t, variance)


def hybrid(
    predict: Predict,
    schedule: Discrete,
    x0: Array,
    t: Array,
    noise: Array,
    *,
    weight: float = 1e-3,
) -> Array:
    r"""The simple loss on ``eps``, and a little of the bound to train the variance alone.

    .. math:: L = L_{simple} + w L_{vlb}(\mathrm{sg}[\mu], \Sigma)

    One network call. Arguments and result as for :func:`variational`. Nichol & Dhariwal 2021,
    eq. (16).
    """
    predicted = predict(perturb(schedule, x0, t, noise), t)
    still = jax.lax.stop_gradient(predicted)._replace(variance=predicted.variance)
    bound = schedule.steps * _bound_term(schedule, still, x0, t, "learned")
    return _mean_square(predicted.eps - noise) + weight * bound


def _bound_term(schedule: Discrete, predicted: Prediction, x0, t: Array, variance: str) -> Array:
    chain = likelihood.chain(schedule)
    k = jnp.round(schedule.index(t)).astype(jnp.int32)
    return likelihood.bound_term(chain, predicted, x0, k, variance=variance)


def weighted_x0(
    predict: Predict,
    schedule: Schedule,
    x0: Array,
    t: Array,
    noise: Array,
    weighting: Weighting,
) -> Array:
    r"""Weighted mean squared error of ``x0``.

    .. math:: L_i = w(\lambda_t)\, \mathrm{mean}\, (\hat x_0 - x_0)^2

    One network call. Arguments and result as for :func:`regression`; ``weighting`` is a function of
    half log SNR, one of those below.
    """
    predicted = predict(perturb(schedule, x0, t, noise), t)
    weight = weighting(jnp.broadcast_to(half_log_snr(schedule, t), x0.shape[:1]))
    return _mean_square(expand(jnp.sqrt(weight), x0) * (predicted.x0 - x0))


def _mean_square(error: Array) -> Array:
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def eps_weight() -> Weighting:
    """``SNR``: the simple loss on ``eps``, written for ``x0``."""
    return lambda lam: jnp.exp(2 * lam)


def v_weight() -> Weighting:
    """``SNR + 1``: the simple loss on ``v`` for a variance-preserving schedule."""
    return lambda lam: jnp.exp(2 * lam) + 1


def min_snr_weight(gamma: float = 5.0) -> Weighting:
    """``min(SNR, gamma)`` (Hang et al. 2023, eq. (6))."""
    return lambda lam: jnp.minimum(jnp.exp(2 * lam), gamma)


def edm_weight(sigma_data: float = 0.5) -> Weighting:
    """``(s^2 + d^2) / (s d)^2 = 1/d^2 + SNR``: unit weight on EDM's network output.

    Karras et al. 2022, table 1.
    """
    return lambda lam: jnp.exp(2 * lam) + sigma_data**-2


def sigmoid_weight(bias: float = -1.0) -> Weighting:
    """``SNR sigmoid(b - log SNR) = e^b sigmoid(log SNR - b)``: eps loss times a sigmoid.

    Kingma & Gao 2023, section 4 and Hoogeboom et al. 2024, without the density of the times: it
    multiplies whatever density the times are drawn from.
    """
    return lambda lam: jnp.exp(bias) * jax.nn.sigmoid(2 * lam - bias)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "edm": edm_weight,
    "min_snr": min_snr_weight,
    "sigmoid": sigmoid_weight,
    "snr": eps_weight,
    "v": v_weight,
}


class Slots(NamedTuple):
    """Which rows of a global batch are at hand, so that draws do not depend on how it is split.

    Attributes:
        index: Global positions of the rows, ``(n,)``.
        total: Size of the global batch.
    """

    index: Array
    total: int

    def keys(self, key: Key) -> Key:
        """A key per row, ``fold_in(key, position)``."""
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(self.index)


def _uniform(key: Key, slots: Slots) -> Array:
    return jax.vmap(jax.random.uniform)(slots.keys(key))


def uniform_times(schedule: Schedule, key: Key, slots: Slots) -> Array:
    """Independent and uniform on ``[t_min, t_max]``, shape ``(n,)``."""
    return schedule.t_min + (schedule.t_max - schedule.t_min) * _uniform(key, slots)


def stratified_times(schedule: Schedule, key: Key, slots: Slots) -> Array:
    """One shared offset, evenly spread: ``u_i = (u + i / n) mod 1`` (Kingma et al. 2021, app. I).

    Uniform on ``[t_min, t_max]`` for each row, with far less variance in a batch's mean loss.
    """
    offset = jax.random.uniform(fold_in(key, 0))
    u = (offset + slots.index / slots.total) % 1.0
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def log_normal_times(
    schedule: Schedule, key: Key, slots: Slots, mean: float = -1.2, std: float = 1.2
) -> Array:
    """``log(sigma / alpha) ~ N(mean, std^2)``, within ``[t_min, t_max]`` (Karras et al. 2022)."""
    normal = jax.vmap(jax.random.normal)(slots.keys(key))
    return jnp.clip(schedule.time(-(mean + std * normal)), schedule.t_min, schedule.t_max)


def discrete_times(schedule: Schedule, key: Key, slots: Slots) -> Array:
    """Uniform over the nodes ``i / N`` of a chain (Ho et al. 2020, algorithm 1).

    Raises:
        ValueError: The schedule is no chain.
    """
    if not isinstance(schedule, Discrete):
        raise ValueError(
            f"discrete times need a Discrete schedule, not {type(schedule).__name__}; "
            "use 'uniform' times"
        )
    draw = jax.vmap(lambda k: jax.random.randint(k, (), 0, schedule.steps))
    # Looked up, since a compiled division by N may be a multiplication by 1/N, which is not exact.
    nodes = jnp.asarray(np.arange(1, schedule.steps + 1) / schedule.steps)
    return nodes[draw(slots.keys(key))]


TIMES: dict[str, Callable[..., Array]] = {
    "discrete": discrete_times,
    "log_normal": log_normal_times,
    "stratified": stratified_times,
    "uniform": uniform_times,
}
