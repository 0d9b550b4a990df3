r"""Moves of the noise level given the data: ``p(sigma | x)`` on a grid of levels, or Langevin.

A classifier that tells levels apart, trained on noised data with all levels equally likely, gives
``p(sigma_k | x)`` under a prior uniform in ``log sigma``; for a known mixture it is known exactly.
Either is a function ``logits: x -> (chains, levels)``, from which a level is taken by
:func:`posterior_mode`, as in the paper, or drawn by :func:`posterior_draw`, which is a Gibbs step
proper. In ``d`` dimensions the posterior has a relative width of ``1 / sqrt(2 d)``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.analytic import Mixture
from diffjax.mcmc.base import ChainState, Move
from diffjax.prediction import Predict
from diffjax.random import fold_in, normal
from diffjax.typing import Array, Key

__all__ = [
    "Logits",
    "density_rate",
    "log_langevin",
    "mixture_logits",
    "noise_levels",
    "posterior_draw",
    "posterior_mean",
    "posterior_mode",
    "score_rate",
    "within",
]

Logits = Callable[[Array], Array]
Rate = Callable[[Key, Predict, ChainState], Array]


def noise_levels(low: float, high: float, count: int = 1000) -> np.ndarray:
    r"""Levels ``low (high / low)^u``, ``u`` from 1 to 0.001: the noisiest is the first.

    Kim & Ye 2023 (arXiv 2209.14593); the order is that of the classes of its predictor.

    Returns:
        Shape ``(count,)``.

    Raises:
        ValueError: Not ``0 < low < high``, or fewer than two levels.
    """
    if not 0 < low < high or count < 2:
        raise ValueError(
            f"noise levels need 0 < low < high and a count of at least 2, got low={low:g}, "
            f"high={high:g}, count={count}"
        )
    return low * (high / low) ** np.linspace(1.0, 1e-3, count)


def within(levels: Array, logits: Logits, low: float, high: float = float("inf")) -> Logits:
    """The logits without the levels below ``low`` and above ``high``: a prior that is zero there.

    Raises:
        ValueError: No level is left.
    """
    allowed = (np.asarray(levels) >= low) & (np.asarray(levels) <= high)
    if not allowed.any():
        raise ValueError(
            f"no noise level is between {low:g} and {high:g}: they go from {np.min(levels):g} to "
            f"{np.max(levels):g}"
        )
    return lambda x: jnp.where(allowed, logits(x), -jnp.inf)


def mixture_logits(mixture: Mixture, levels: Array) -> Logits:
    r"""The exact ``log p(sigma_k | x)`` of a mixture, its levels equally likely beforehand.

    .. math:: \log \sum_j w_j N(x;\ \mu_j, (s_j^2 + \sigma_k^2) I) + const
    """
    count = np.shape(mixture.means)[0]

    def logits(x: Array) -> Array:
        flat = x.reshape(x.shape[0], 1, -1)
        means = jnp.reshape(mixture.means, (count, -1)).astype(x.dtype)
        # Distances once for all levels.
        squares = jnp.sum((flat - means) ** 2, axis=-1)[:, None]
        std = jnp.broadcast_to(jnp.asarray(mixture.std, x.dtype), (count,))
        total = std**2 + jnp.asarray(levels, x.dtype)[:, None] ** 2
        log_joint = -0.5 * (squares / total + flat.shape[-1] * jnp.log(total))
        if mixture.log_weights is not None:
            log_joint += jnp.asarray(mixture.log_weights, x.dtype)
        return jax.nn.logsumexp(log_joint, axis=-1)

    return logits


def posterior_mode(levels: Array, logits: Logits) -> Move:
    """The most likely level, the paper's choice. Calls no network but the predictor.

    Args:
        levels: Noise levels, ``(levels,)``.
        logits: ``x -> (chains, levels)``, up to a constant ``log p(sigma_k | x)``.
    """
    return _gibbs(levels, logits, lambda key, values, logs: logs[jnp.argmax(values, axis=-1)])


def posterior_mean(levels: Array, logits: Logits) -> Move:
    """The mean of ``log sigma`` over ``p(sigma | x)``: steadier than the mode of a small predictor.

    Args:
        levels: Noise levels, ``(levels,)``.
        logits: As for :func:`posterior_mode`.
    """
    return _gibbs(levels, logits, lambda key, values, logs: jax.nn.softmax(values) @ logs)


def posterior_draw(levels: Array, logits: Logits) -> Move:
    """A level drawn from ``p(sigma | x)``: a Gibbs step.

    Args:
        levels: Noise levels, ``(levels,)``.
        logits: As for :func:`posterior_mode`.
    """

    def choose(key, values, logs):
        draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
        return logs[draw(key, values)]

    return _gibbs(levels, logits, choose)


def _gibbs(levels: Array, logits: Logits, choose: Callable[[Key, Array, Array], Array]) -> Move:
    """A move to ``exp(choose(key, logits, log levels))``."""
    logs = np.log(levels)

    def step(key, predict, state):
        del predict
        dtype = state.sigma.dtype
        log_sigma = choose(key, logits(state.x), jnp.asarray(logs, dtype))
        return state._replace(sigma=jnp.exp(log_sigma).astype(dtype)), jnp.ones_like(state.sigma)

    return Move(step)


def log_langevin(rate: Rate, step_size: float, low: float, high: float, evaluations: int) -> Move:
    r"""Langevin dynamics in ``u = log sigma``, which needs no predictor; reflected at the ends.

    .. math:: u' = u + \tfrac h2 \frac{\partial\log p_\sigma(x)}{\partial u} + \sqrt h\, z

    Its prior is uniform in ``u``, as the predictors' is.

    Args:
        rate: ``(key, predict, state) -> d log p / d log sigma``, ``(chains,)``: see
            :func:`density_rate` and :func:`score_rate`.
        step_size: ``h``. The posterior of ``u`` has a variance of about ``1 / (2 d)``: so much
            halves the distance to its middle.
        low: Lowest level.
        high: Highest level.
        evaluations: Network calls that the rate costs.

    Raises:
        ValueError: The step size is not above 0, or not ``0 < low < high``.
    """
    if not step_size > 0:
        raise ValueError(f"log_langevin: the step size must be above 0, got {step_size}")
    if not 0 < low < high:
        raise ValueError(f"log_langevin: need 0 < low < high, got low={low:g}, high={high:g}")
    bottom, width = np.log(low), np.log(high / low)

    def step(key, predict, state):
        sigma = state.sigma
        slope = rate(fold_in(key, 0), predict, state)
        noise = normal(fold_in(key, 1), sigma.shape, sigma.dtype)
        u = jnp.log(sigma) + 0.5 * step_size * slope + jnp.sqrt(step_size) * noise
        # Reflected: a saw tooth of twice the width, folded.
        folded = width - jnp.abs(jnp.mod(u - bottom, 2 * width) - width)
        moved = jnp.exp(bottom + folded).astype(sigma.dtype)
        return state._replace(sigma=moved), jnp.ones_like(sigma)

    return Move(step, evaluations)


def density_rate(log_density: Callable[[Array, Array], Array]) -> Rate:
    """The rate of a log-density known in closed form, ``(x, sigma) -> (chains,)``, by autodiff."""

    def rate(key, predict, state):
        del key, predict
        gradient = jax.grad(lambda sigma: log_density(state.x, sigma).sum())(state.sigma)
        return state.sigma * gradient

    return rate


def score_rate(key: Key, predict: Predict, state: ChainState) -> Array:
    r"""The rate from the network alone: density diffuses as the noise rises.

    .. math:: \frac{\partial\log p_\sigma}{\partial\log\sigma} =
              \sigma^2 (\Delta\log p_\sigma + \|\nabla\log p_\sigma\|^2) =
              \|\epsilon\|^2 - \sigma\, v^T \frac{\partial\epsilon}{\partial x} v

    in expectation over random signs ``v`` (Hutchinson). As dear as two network calls.
    """
    signs = jnp.sign(normal(key, state.x.shape, state.x.dtype))
    eps, tangent = jax.jvp(lambda x: predict(x, state.sigma).eps, (state.x,), (signs,))
    flat = [value.reshape(value.shape[0], -1) for value in (eps, signs, tangent)]
    return jnp.sum(flat[0] ** 2, axis=-1) - state.sigma * jnp.sum(flat[1] * flat[2], axis=-1)
