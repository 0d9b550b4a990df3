"""Ancestral sampling: the learned reverse chain of DDPM, between any two times."""

from collections.abc import Callable

import jax.numpy as jnp

from diffjax.random import normal
from diffjax.schedules import Schedule
from diffjax.solvers.base import Solver, one_step
from diffjax.solvers.transition import transition
from diffjax.typing import Array

__all__ = ["VARIANCES", "ancestral"]

VARIANCES = ("small", "large", "learned")


def ancestral(
    schedule: Schedule,
    variance: str = "small",
    *,
    gradient: Callable[[Array, Array], Array] | None = None,
) -> Solver:
    r"""Draws from ``p(x_s | x_t) = N(posterior mean at the predicted x_0, variance)``.

    .. math:: x_s = \alpha_s (1 - e^{-2h})\, x_0 + \frac{\sigma_s}{\sigma_t} e^{-h} x_t + \tau z,
              \quad h = \lambda_s - \lambda_t

    with ``tau^2`` one of

    * ``small``: ``sigma_s^2 (1 - e^{-2h})``, exact for a point mass ("fixedsmall");
    * ``large``: ``sigma_t^2 (1 - e^{-2h})``, exact for unit Gaussian data ("fixedlarge");
    * ``learned``: ``large^w small^(1 - w)``, ``w`` the prediction's ``variance`` (Improved DDPM).

    No noise is added on a step to ``sigma_s = 0``. One network call a step. Ho et al. 2020,
    algorithm 2 and eq. (7); Nichol & Dhariwal 2021, eq. (15).

    Args:
        schedule: The forward process; on a chain's own grid this is the chain.
        variance: ``small``, ``large`` or ``learned``.
        gradient: Classifier guidance of the chain: ``(x, t) -> s grad_x log p(y | x_t)``, by which
            the mean moves, ``tau^2`` times (Dhariwal & Nichol 2021, algorithm 1).

    Raises:
        ValueError: Another ``variance``, or ``learned`` with a prediction that has none.
    """
    if variance not in VARIANCES:
        raise ValueError(
            f"ancestral: unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}"
        )

    def step(predict, x, span, key):
        over = transition(schedule, span, x)
        prediction = predict(x, span.t)
        if variance == "learned":
            if prediction.variance is None:
                raise ValueError(
                    "ancestral: variance='learned' needs a network with learned variances; "
                    "use 'small' or 'large'"
                )
            w = prediction.variance
            noise_variance = over.large_variance**w * over.small_variance ** (1 - w)
        else:
            noise_variance = over.small_variance if variance == "small" else over.large_variance
        mean = over.posterior_mean(x, prediction.x0)
        if gradient is not None:
            mean = mean + noise_variance * gradient(x, span.t)
        std = jnp.where(over.sigma_next > 0, jnp.sqrt(noise_variance), 0.0)
        return mean + std * normal(key, x.shape, x.dtype)

    return one_step(step)
