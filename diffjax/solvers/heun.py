"""Heun's method of EDM, deterministic and stochastic.

Both work on any schedule in the coordinates ``y = x / alpha`` with the noise level
``s = sigma / alpha``, in which the probability-flow ODE is ``dy/ds = eps``.
"""

import jax.numpy as jnp

from diffjax.prediction import Predict
from diffjax.random import normal
from diffjax.schedules import Schedule, expand
from diffjax.solvers.base import Solver, Span, one_step
from diffjax.solvers.transition import transition
from diffjax.typing import Array

__all__ = ["heun", "heun_stochastic"]


def heun(schedule: Schedule) -> Solver:
    r"""EDM's deterministic sampler.

    .. math:: y' = y_t + (s_s - s_t)\,\epsilon(x_t, t), \quad
              y_s = y_t + (s_s - s_t)\,\tfrac12[\epsilon(x_t, t) + \epsilon(x', s)]

    Order 2, two network calls a step. The last step, to no noise, is an Euler step: let the grid
    end at ``t_min`` and finish with :func:`~diffjax.solvers.denoise`, ``2 N - 1`` calls for ``N``
    noise levels. Karras et al. 2022, algorithm 1.

    Args:
        schedule: The forward process.
    """

    def step(predict, x, span, key):
        del key
        return _heun_step(schedule, predict, x, span)

    return one_step(step, evaluations=2)


def heun_stochastic(
    schedule: Schedule,
    *,
    gamma: float,
    noise_min: float = 0.0,
    noise_max: float = float("inf"),
    inflation: float = 1.0,
) -> Solver:
    r"""EDM's stochastic sampler: a little more noise, then a Heun step from there.

    .. math:: \hat s = s_t (1 + \gamma), \quad
              \hat y = y_t + \sqrt{\hat s^2 - s_t^2}\, S_{noise}\, z

    and a Heun step from ``s^`` to ``s_s``.

    Two network calls a step. Karras et al. 2022, algorithm 2.

    Args:
        schedule: The forward process.
        gamma: Relative rise of the noise level; ``min(S_churn / N, sqrt(2) - 1)`` in the paper, for
            ``N`` noise levels.
        noise_min: Lowest noise level ``sigma / alpha`` at which noise is added (``S_tmin``).
        noise_max: Highest such level (``S_tmax``).
        inflation: Standard deviation of the added noise (``S_noise``).
    """

    def step(predict, x, span, key):
        alpha = schedule.alpha(span.t)
        level = schedule.sigma(span.t) / alpha
        inside = (level >= noise_min) & (level <= noise_max)
        raised = jnp.where(inside, level * (1 + gamma), level)
        t = jnp.where(inside, schedule.time(-jnp.log(raised)), span.t)
        added = inflation * jnp.sqrt(jnp.maximum(raised**2 - level**2, 0))
        y = x / expand(alpha, x) + expand(added, x) * normal(key, x.shape, x.dtype)
        x = expand(schedule.alpha(t), x) * y
        return _heun_step(schedule, predict, x, span._replace(t=t))

    return one_step(step, evaluations=2)


def _heun_step(schedule: Schedule, predict: Predict, x: Array, span: Span) -> Array:
    over = transition(schedule, span, x)
    slope = predict(x, span.t).eps
    slope_next = predict(over.along_eps(x, slope), span.t_next).eps
    return over.along_eps(x, 0.5 * (slope + slope_next))
