"""Ancestral sampling: the learned reverse chain of DDPM, and the ancestral form of ODE solvers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax.random import normal
from diffjax.schedules import Schedule, expand
from diffjax.solvers.base import Solver, one_step
from diffjax.solvers.transition import transition
from diffjax.typing import Array

__all__ = ["VARIANCES", "ancestral", "ancestral_form"]

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


def ancestral_form(
    schedule: Schedule, solver: Solver, eta: Array = 1.0, inflation: Array = 1.0
) -> Solver:
    r"""An ODE solver that steps below the next noise level, and adds noise up to it.

    .. math:: s_{up}^2 = \eta^2 s_s^2 (1 - s_s^2/s_t^2), \quad s_{down}^2 = s_s^2 - s_{up}^2, \quad
              y_s = y_{down} + s_{up} S_{noise}\, z

    with ``y = x / alpha`` and ``s = sigma / alpha``, on any schedule. Of DDIM it is
    :func:`~diffjax.solvers.ddim` with that ``eta`` (k-diffusion's Euler ancestral); of
    :func:`~diffjax.solvers.singlestep` with ``eps`` or ``x0`` its DPM2 ancestral and DPM++ 2S
    ancestral. As many network calls a step as the solver's.

    Args:
        schedule: The forward process.
        solver: One without memory.
        eta: Share of the ancestral noise, 0 to 1; 1 leaves ``s_down = s_s^2 / s_t``.
        inflation: Standard deviation of the added noise (``S_noise``).

    Raises:
        ValueError: The solver has a memory: predictions off the grid would not fit it.
    """
    if jax.tree.leaves(solver.init(jnp.zeros((1, 1)))):
        raise ValueError("ancestral_form: needs a solver without memory, such as singlestep")

    def plan(ts: Array):
        t, t_next = ts[:-1].reshape(-1), ts[1:].reshape(-1)
        level, level_next = (schedule.sigma(at) / schedule.alpha(at) for at in (t, t_next))
        up = eta * level_next * jnp.sqrt(jnp.maximum(1 - (level_next / level) ** 2, 0))
        down = jnp.sqrt(jnp.maximum(level_next**2 - up**2, 0))
        tiny = jnp.finfo(down.dtype).tiny
        below = schedule.time(-jnp.log(jnp.maximum(down, tiny)))
        below = jnp.where(up > 0, below, t_next)
        # Steps off the grid, which do not follow one another, are planned as samples of their own.
        planned = jax.tree.map(lambda leaf: leaf[0], solver.plan(jnp.stack([t, below])))
        rows = (below, schedule.alpha(t_next) / schedule.alpha(below), up * inflation, planned)
        return jax.tree.map(lambda leaf: leaf.reshape((ts.shape[0] - 1, *ts.shape[1:])), rows)

    def step(predict, x, memory, span, key):
        below, ratio, up, planned = span.plan
        own = span._replace(t_next=below, plan=planned)
        x, memory = solver.step(predict, x, memory, own, key)
        std = schedule.alpha(span.t_next) * up
        noise = normal(key, x.shape, x.dtype)
        return expand(ratio, x) * x + expand(std, x) * noise, memory

    return Solver(solver.init, step, solver.evaluations, plan)
