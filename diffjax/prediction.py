r"""What a network predicts, and how to read it as a :class:`Prediction`.

With ``x_t`` given, the clean sample ``x0``, the noise ``eps``, ``v``, the score and the flow
velocity are affine functions of one another:

.. math:: x_t = \alpha x_0 + \sigma\epsilon, \quad v = \alpha\epsilon - \sigma x_0, \quad
          s = -\epsilon/\sigma, \quad u = \dot\alpha x_0 + \dot\sigma\epsilon

A :class:`Parametrization` says which of them a network's output stands for, how its input is
scaled and what it is told about the time. :func:`network_predict` turns network, parametrisation
and schedule into the one thing a solver ever sees: ``predict(x, t) -> Prediction``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffjax.schedules import Discrete, Schedule, expand, half_log_snr, rates
from diffjax.typing import Array

__all__ = [
    "EPS",
    "FLOW",
    "SCORE",
    "VE",
    "X0",
    "Parametrization",
    "Predict",
    "Prediction",
    "V",
    "edm",
    "evaluations",
    "learned_range",
    "network_predict",
    "parametrization",
    "with_evaluations",
]


class Prediction(NamedTuple):
    """What is expected of the clean sample and of the noise, given ``x_t``.

    ``x_t = alpha x0 + sigma eps`` holds exactly; XLA drops the one that is not used.

    Attributes:
        x0: ``E[x_0 | x_t]``, of ``x_t``'s shape.
        eps: ``E[eps | x_t]``, of ``x_t``'s shape.
        variance: What a network with learned variances says of them, or None. For the learned
            range of Improved DDPM it is the place ``w`` between the smallest (0) and the largest
            (1) reverse variance, on a log scale: the one quantity that does not depend on the step
            taken, so that one prediction serves every time grid.
    """

    x0: Array
    eps: Array
    variance: Array | None = None


Predict = Callable[[Array, Array], Prediction]


def from_x0(schedule: Schedule, x: Array, t: Array, x0: Array) -> Prediction:
    """``eps = (x - alpha x0) / sigma``."""
    alpha, sigma = _scales(schedule, x, t)
    return Prediction(x0, (x - alpha * x0) / sigma)


def from_eps(schedule: Schedule, x: Array, t: Array, eps: Array) -> Prediction:
    """``x0 = (x - sigma eps) / alpha``."""
    alpha, sigma = _scales(schedule, x, t)
    return Prediction((x - sigma * eps) / alpha, eps)


def from_v(schedule: Schedule, x: Array, t: Array, v: Array) -> Prediction:
    """``x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)``, ``eps = (sigma x + alpha v) / (...)``."""
    alpha, sigma = _scales(schedule, x, t)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * v) / norm, (sigma * x + alpha * v) / norm)


def from_score(schedule: Schedule, x: Array, t: Array, score: Array) -> Prediction:
    """``eps = -sigma score``."""
    return from_eps(schedule, x, t, -expand(schedule.sigma(t), x) * score)


def from_velocity(schedule: Schedule, x: Array, t: Array, velocity: Array) -> Prediction:
    """Solves ``x = alpha x0 + sigma eps`` and ``u = alpha' x0 + sigma' eps`` for both unknowns."""
    (alpha, sigma), (alpha_rate, sigma_rate) = (
        tuple(expand(value, x) for value in pair) for pair in rates(schedule, t)
    )
    determinant = alpha * sigma_rate - sigma * alpha_rate
    return Prediction(
        (sigma_rate * x - sigma * velocity) / determinant,
        (alpha * velocity - alpha_rate * x) / determinant,
    )


def to_x0(schedule: Schedule, t: Array, prediction: Prediction) -> Array:
    """The clean sample."""
    return prediction.x0


def to_eps(schedule: Schedule, t: Array, prediction: Prediction) -> Array:
    """The noise."""
    return prediction.eps


def to_v(schedule: Schedule, t: Array, prediction: Prediction) -> Array:
    """``v = alpha eps - sigma x0`` (Salimans & Ho 2022)."""
    alpha, sigma = _scales(schedule, prediction.x0, t)
    return alpha * prediction.eps - sigma * prediction.x0


def to_score(schedule: Schedule, t: Array, prediction: Prediction) -> Array:
    """``grad log p_t(x) = -eps / sigma``."""
    return -prediction.eps / expand(schedule.sigma(t), prediction.eps)


def to_velocity(schedule: Schedule, t: Array, prediction: Prediction) -> Array:
    """``u = alpha' x0 + sigma' eps``: the right-hand side of the probability-flow ODE in ``t``."""
    _, (alpha_rate, sigma_rate) = rates(schedule, t)
    return (
        expand(alpha_rate, prediction.x0) * prediction.x0
        + expand(sigma_rate, prediction.eps) * prediction.eps
    )


def _scales(schedule: Schedule, x: Array, t: Array) -> tuple[Array, Array]:
    return expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)


class Parametrization(NamedTuple):
    """How a network sees ``x`` and ``t``, and what its output stands for.

    Attributes:
        decode: ``(schedule, x, t, output) -> Prediction``.
        encode: ``(schedule, x, t, prediction) -> output``, the inverse: what the output should be.
        scale: ``(schedule, t)`` to the factor that multiplies the network's input.
        label: ``(schedule, t)`` to the network's time input, of ``t``'s shape.
    """

    decode: Callable[[Schedule, Array, Array, Array], Prediction]
    encode: Callable[[Schedule, Array, Array, Prediction], Array]
    scale: Callable[[Schedule, Array], Array]
    label: Callable[[Schedule, Array], Array]


def index_label(schedule: Schedule, t: Array) -> Array:
    """The chain's index, 0..N-1; ``999 t`` for a continuous schedule (as Score-SDE feeds it)."""
    if isinstance(schedule, Discrete):
        return schedule.index(t)
    return 999.0 * jnp.asarray(t) / schedule.t_max


def noise_label(schedule: Schedule, t: Array) -> Array:
    """``log(sigma / alpha) / 4`` (Karras et al. 2022, table 1): about -1.6 to 1.1."""
    return -half_log_snr(schedule, t) / 4


def half_noise_label(schedule: Schedule, t: Array) -> Array:
    """``sigma / (2 alpha)``: the noise level, had the images been in [0, 1]."""
    return jnp.exp(-half_log_snr(schedule, t)) / 2


def _unscaled(schedule: Schedule, t: Array) -> Array:
    return jnp.ones_like(jnp.asarray(t, float))


def _plain(decode, encode) -> Parametrization:
    return Parametrization(
        decode,
        lambda schedule, x, t, prediction: encode(schedule, t, prediction),
        _unscaled,
        index_label,
    )


EPS = _plain(from_eps, to_eps)
X0 = _plain(from_x0, to_x0)
V = _plain(from_v, to_v)
SCORE = _plain(from_score, to_score)
FLOW = _plain(from_velocity, to_velocity)
# The published variance-exploding networks: x0 = x / alpha + s F(x / alpha; s / 2) at the noise
# level s = sigma / alpha (Karras et al. 2022, table 1). They were trained on images in [0, 1].
VE = Parametrization(
    lambda schedule, x, t, output: from_eps(schedule, x, t, -output),
    lambda schedule, x, t, prediction: -prediction.eps,
    lambda schedule, t: 1 / schedule.alpha(t),
    half_noise_label,
)


def edm(sigma_data: float = 0.5) -> Parametrization:
    r"""EDM's preconditioning, in the coordinates ``x / alpha`` with noise ``s = sigma / alpha``.

    .. math:: x_0 = c_{skip}\, x/\alpha + c_{out}\, F(c_{in}\, x/\alpha;\ \log(s)/4)

    with ``c_skip = d^2 / (s^2 + d^2)``, ``c_out = s d / sqrt(s^2 + d^2)``,
    ``c_in = 1 / sqrt(s^2 + d^2)`` and ``d = sigma_data``: input and target have unit variance at
    every noise level. Karras et al. 2022, table 1.

    Args:
        sigma_data: Standard deviation of the data.
    """

    def coefficients(schedule, x, t):
        alpha, sigma = _scales(schedule, x, t)
        noise = sigma / alpha
        total = noise**2 + sigma_data**2
        return alpha, noise, sigma_data**2 / total, noise * sigma_data / jnp.sqrt(total), total

    def decode(schedule, x, t, output):
        alpha, noise, skip, out, total = coefficients(schedule, x, t)
        x0 = skip * x / alpha + out * output
        # eps = (x/alpha - x0)/s without the cancellation of x/alpha - x0 at low noise.
        eps = noise * x / (alpha * total) - out / noise * output
        return Prediction(x0, eps)

    def encode(schedule, x, t, prediction):
        alpha, _, skip, out, _ = coefficients(schedule, x, t)
        return (prediction.x0 - skip * x / alpha) / out

    def scale(schedule, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)

    return Parametrization(decode, encode, scale, noise_label)


def learned_range(mean: Parametrization) -> Parametrization:
    r"""Twice the channels: ``mean``'s output, then where the log variance lies in its range.

    .. math:: \log\mathrm{var} = w \log\beta + (1 - w)\log\tilde\beta, \quad w = (o + 1)/2

    The solver knows the step and hence both ends; the prediction carries ``w``. Nichol & Dhariwal
    2021, eq. (15).

    Args:
        mean: Parametrisation of the first half of the channels.
    """

    def decode(schedule, x, t, output):
        first, second = jnp.split(output, 2, axis=-1)
        return mean.decode(schedule, x, t, first)._replace(variance=(second + 1) / 2)

    def encode(schedule, x, t, prediction):
        first = mean.encode(schedule, x, t, prediction)
        return jnp.concatenate([first, 2 * prediction.variance - 1], axis=-1)

    return mean._replace(decode=decode, encode=encode)


def parametrization(name: str, *, sigma_data: float = 0.5) -> Parametrization:
    """The parametrisation of a name: ``eps x0 v score flow edm`` or ``ve``.

    Raises:
        ValueError: The name is none of these.
    """
    named = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "flow": FLOW, "ve": VE}
    named["edm"] = edm(sigma_data)
    if name not in named:
        raise ValueError(f"unknown parametrization {name!r}: choose one of {', '.join(named)}")
    return named[name]


def network_predict(
    network: Callable[[Array, Array], Array], schedule: Schedule, parametrization: Parametrization
) -> Predict:
    """``predict`` of a network, its parametrisation and a schedule. Costs one network call.

    Args:
        network: ``(x, label) -> output``, parameters and class labels closed over; ``label`` has
            shape ``(batch,)``. Any pure function will do, whatever library it comes from.
        schedule: The forward process it was trained on.
        parametrization: How it sees its input and what its output stands for.
    """

    def predict(x: Array, t: Array) -> Prediction:
        label = jnp.broadcast_to(parametrization.label(schedule, t), x.shape[:1])
        output = network(expand(parametrization.scale(schedule, t), x) * x, label)
        return parametrization.decode(schedule, x, t, output)

    return predict


def evaluations(predict: Predict) -> int:
    """Network evaluations per sample that one call of ``predict`` costs: 1 unless declared."""
    return getattr(predict, "evaluations", 1)


def with_evaluations(predict: Predict, count: int) -> Predict:
    """``predict``, declared to cost ``count`` network evaluations per sample and call."""

    def declared(x: Array, t: Array) -> Prediction:
        return predict(x, t)

    declared.evaluations = count
    return declared
