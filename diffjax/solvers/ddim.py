"""DDIM: the exact step of the probability-flow ODE when the prediction stays as it is."""

import jax.numpy as jnp

from diffjax.random import normal
from diffjax.schedules import Schedule
from diffjax.solvers.base import Solver, one_step
from diffjax.solvers.transition import transition
from diffjax.typing import Array

__all__ = ["ddim"]


def ddim(schedule: Schedule, eta: Array = 0.0, inflation: Array = 1.0) -> Solver:
    r"""DDIM; first-order DPM-Solver at ``eta = 0``, ancestral sampling at ``eta = 1``.

    .. math:: x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \tau^2}\,\epsilon + \tau z, \quad
              \tau^2 = \eta^2 \sigma_s^2 (1 - e^{-2h}), \quad h = \lambda_s - \lambda_t

    Order 1; exact on a point mass. In the noise level ``sigma / alpha`` it is the Euler method, and
    with ``eta`` k-diffusion's Euler ancestral.
    Song, Meng & Ermon 2021, eq. (12), (16); one network call a step.

    Args:
        schedule: The forward process.
        eta: Share of the ancestral noise put back in, 0 to 1. Static zero needs no key.
        inflation: Standard deviation of that noise (k-diffusion's ``s_noise``).
    """
    deterministic = isinstance(eta, int | float) and eta == 0

    def step(predict, x, span, key):
        over = transition(schedule, span, x)
        prediction = predict(x, span.t)
        if deterministic:
            return over.alpha_next * prediction.x0 + over.sigma_next * prediction.eps
        variance = eta**2 * over.small_variance
        direction = jnp.sqrt(jnp.maximum(over.sigma_next**2 - variance, 0))
        noise = normal(key, x.shape, x.dtype)
        return (
            over.alpha_next * prediction.x0
            + direction * prediction.eps
            + jnp.sqrt(variance) * inflation * noise
        )

    return one_step(step)
