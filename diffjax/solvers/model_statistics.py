r"""The empirical model statistics of DPM-Solver-v3: what a network does along its noise levels.

Three curves over half log SNR, one number a pixel each: ``l``, for ``f = e^{-lambda} eps - l x /
alpha`` to depend on ``x`` as little as possible; ``s`` and ``b``, for its derivative along the ODE
to be ``s f + b`` as nearly as possible. Zheng, Lu, Chen & Zhu 2023 (arXiv 2310.13268).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict
from diffjax.random import normal
from diffjax.schedules import Schedule, half_log_snr
from diffjax.typing import Array, Key

__all__ = ["Statistics", "statistics"]

# Where f varies by less than this share of its parts, it is known, and s has nothing to explain.
_KNOWN = 1e-5


class Statistics(NamedTuple):
    """The empirical model statistics: curves over half log SNR, linear between their points.

    Attributes:
        lam: Ascending and evenly spaced, ``(points,)``.
        l: Of the network's Jacobian, ``(points, ...)`` with the data's axes, of size 1 where the
            curve is shared.
        s: Of ``f'`` on ``f``, likewise.
        b: What is left of ``f'``, likewise.
    """

    lam: Array
    l: Array  # noqa: E741 (the paper's name)
    s: Array
    b: Array


def statistics(
    predict: Predict,
    schedule: Schedule,
    x0: Array,
    key: Key,
    *,
    points: int = 121,
    t_start: float | None = None,
    t_end: float | None = None,
    batch_size: int | None = None,
) -> Statistics:
    r"""Fits the curves to a network on data, pixel by pixel.

    .. math:: l = E[(\sigma J v) \circ v], \quad
              s = \frac{Cov(f, f')}{Var(f)}, \quad b = E f' - s\, E f

    over ``x = alpha x0 + sigma z``, ``v`` a Rademacher probe a sample, ``J = d eps / dx`` and
    ``f'`` the derivative along the ODE; all by forward-mode derivatives. Where ``f`` does not vary,
    as of a Gaussian, ``s`` is 0. Two calls of ``predict`` a point and sample, and two derivatives.
    Zheng et al. 2023, section 3.3; 1,024 to 4,096 samples at 121 to 1,201 points there.

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        x0: Data, ``(n, ...)``.
        key: For noise and probes.
        points: How many points the curves have, at least 2.
        t_start: Noisiest time; the schedule's ``t_max`` if not given.
        t_end: Cleanest time, not 0; the schedule's ``t_min`` if not given.
        batch_size: Samples at a time, a divisor of ``n``; all if not given.

    Raises:
        ValueError: Fewer than two points or samples, or another batch size.
    """
    size = len(x0) if batch_size is None else batch_size
    if points < 2 or len(x0) < 2:
        raise ValueError(
            f"statistics: needs at least 2 points and 2 samples, got points={points} and "
            f"{len(x0)} in x0"
        )
    if size < 1 or len(x0) % size:
        raise ValueError(f"statistics: batch_size={size} must divide the {len(x0)} samples of x0")
    ends = [
        schedule.t_max if t_start is None else t_start,
        schedule.t_min if t_end is None else t_end,
    ]
    lams = jnp.linspace(*(half_log_snr(schedule, jnp.asarray(t, float)) for t in ends), points)
    parts = x0.reshape(-1, size, *x0.shape[1:])

    def state(lam: Array, part: Array, chunk: Array):
        """The prediction as a function of ``(x, lam)``, where it is wanted, a probe's key."""
        t = schedule.time(lam)
        # The same noise at every point, for the curves to be smooth.
        noise, probe = jax.random.split(jax.random.fold_in(key, chunk))
        x = schedule.alpha(t) * part + schedule.sigma(t) * normal(noise, part.shape, part.dtype)
        return lambda x, lam: predict(x, schedule.time(lam)).eps, x.astype(part.dtype), probe

    def over_parts(function, lam: Array):
        chunks = jnp.arange(len(parts))
        return jax.lax.map(lambda args: function(*state(lam, *args), lam), (parts, chunks))

    def jacobian(eps, x, probe, lam):
        v = jax.random.rademacher(probe, x.shape, x.dtype)
        _, product = jax.jvp(lambda x: eps(x, lam), (x,), (v,))
        return jnp.mean(schedule.sigma(schedule.time(lam)) * product * v, axis=0)

    l = jax.lax.map(lambda lam: over_parts(jacobian, lam).mean(axis=0), lams)  # noqa: E741
    l_rate = jnp.gradient(l, lams[1] - lams[0], axis=0)

    def fit(args):
        lam, l, l_rate = args  # noqa: E741
        alpha, alpha_rate = jax.jvp(
            lambda lam: schedule.alpha(schedule.time(lam)), (lam,), (jnp.ones_like(lam),)
        )
        decay = jnp.exp(-lam)

        def both(eps, x, probe, lam):
            del probe
            rate = alpha_rate / alpha * x - alpha * decay * eps(x, lam)
            value, total = jax.jvp(eps, (x, lam), (rate.astype(x.dtype), jnp.ones_like(lam)))
            f = decay * value - l * x / alpha
            f_rate = decay * ((l - 1) * value + total) - l_rate * x / alpha
            means = f.mean(axis=0), f_rate.mean(axis=0)
            apart = f - means[0]
            spread = jnp.mean(apart**2, axis=0), jnp.mean(apart * (f_rate - means[1]), axis=0)
            return *means, *spread, jnp.mean((decay * value) ** 2, axis=0)

        f, f_rate, variance, covariance, scale = over_parts(both, lam)
        # Within the parts, and of their means: the moments of all samples without cancellation.
        variance = variance.mean(axis=0) + f.var(axis=0)
        between = jnp.mean((f - f.mean(axis=0)) * (f_rate - f_rate.mean(axis=0)), axis=0)
        covariance = covariance.mean(axis=0) + between
        varies = variance > _KNOWN**2 * scale.mean(axis=0)
        s = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 0.0)
        return s, f_rate.mean(axis=0) - s * f.mean(axis=0)

    s, b = jax.lax.map(fit, (lams, l, l_rate))
    return Statistics(lams, l, s, b)
