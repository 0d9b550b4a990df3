"""Grids from an optimality principle: of the network (AYS), or of the solver's weights alone (DMN).

Both return ``steps + 1`` decreasing times, as :mod:`~diffjax.solvers.timesteps` does. For a grid
that is fitted to a network and a solver together see :mod:`~diffjax.solvers.learned`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict
from diffjax.random import normal
from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers import timesteps
from diffjax.solvers.multistep import multistep
from diffjax.typing import Array, Key

__all__ = ["align_your_steps", "dmn", "dmn_bound", "klub"]


def align_your_steps(
    predict: Predict,
    schedule: Schedule,
    steps: int,
    *,
    x0: Array,
    key: Key,
    points: int = 128,
    t_start: Array | None = None,
    t_end: Array | None = None,
) -> Array:
    r"""Align Your Steps: the grid of least KLUB among those on a fine grid.

    .. math:: \mathrm{KLUB} = \sum_i 2 \int_{s_{i-1}}^{s_i} s^{-3}\,
              E\,|D(x_s, s) - D(x_{s_i}, s_i)|^2\, ds

    in the noise level ``s = sigma / alpha``, the bound of the divergence from the exact reverse SDE
    to first-order steps of it. Sabour et al. 2024 (arXiv 2404.14507), eq. (11). The expectation is
    measured once, between all pairs of ``points`` levels on noise paths of ``x0``, and the minimum
    over grids is then exact, by dynamic programming, in place of the paper's coordinate search.
    ``points`` calls of ``predict`` on all of ``x0``.

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        steps: Steps of the grid.
        x0: Data, ``(n, ...)``; some hundred examples will do.
        key: For the noise.
        points: Levels of the fine grid, evenly spaced in half log SNR; more than ``steps``.
        t_start: Latest time; the schedule's ``t_max`` if not given.
        t_end: Earliest; the schedule's ``t_min`` if not given.

    Raises:
        ValueError: ``points`` are too few for the steps.
    """
    if points <= steps:
        raise ValueError(f"align_your_steps: points={points} must exceed steps={steps}")
    fine = timesteps.log_snr(schedule, points - 1, t_start=t_start, t_end=t_end)[::-1]
    costs = np.asarray(jax.jit(klub, static_argnums=(0,))(predict, schedule, fine, x0, key))
    # least[b]: cost of the best grid from fine[0] to fine[b] with the steps so far.
    least = np.where(np.arange(points) == 0, 0.0, np.inf)
    before = np.zeros((steps, points), int)
    for step in range(steps):
        reached = least[:, None] + costs
        before[step] = reached.argmin(axis=0)
        least = reached.min(axis=0)
    chosen = [points - 1]
    for step in reversed(range(steps)):
        chosen.append(before[step, chosen[-1]])
    return fine[np.asarray(chosen)]


def klub(predict: Predict, schedule: Schedule, ts: Array, x0: Array, key: Key) -> Array:
    """KLUB of one step between any two times: ``(a, b)`` is that from ``ts[b]`` to ``ts[a]``.

    Infinite where ``b <= a``.

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        ts: Increasing times, ``(points,)``.
        x0: Data, ``(n, ...)``.
        key: For the noise.
    """
    noise = jnp.exp(-jax.vmap(lambda t: half_log_snr(schedule, t))(ts))
    variances = noise**2
    gains = jnp.sqrt(jnp.diff(variances, prepend=0.0))

    def walk(path, scanned):
        t, gain, key = scanned
        path = path + gain * normal(key, x0.shape, x0.dtype)
        state = expand(schedule.alpha(t), path) * path
        return path, predict(state, t).x0.reshape(-1)

    keys = jax.random.split(key, ts.shape[0])
    _, found = jax.lax.scan(walk, x0, (ts, gains, keys))
    # Distances from differences, not from inner products, which would cancel near the diagonal.
    count = x0.shape[0]
    moved = jax.lax.map(lambda end: jnp.square(found - end).sum(-1) / count, found)
    # moved[b, a] = E |D(x_a) - D(x_b)|^2; the trapezoid rule over log s, where ds = s dlog s.
    density = 2 * moved / variances
    area = (density[:, 1:] + density[:, :-1]) / 2 * jnp.diff(jnp.log(noise))
    total = jnp.pad(jnp.cumsum(area, axis=1), ((0, 0), (1, 0)))
    costs = (jnp.diagonal(total)[:, None] - total).T
    return jnp.where(jnp.triu(jnp.ones_like(costs), 1) > 0, costs, jnp.inf)


def dmn(
    schedule: Schedule,
    steps: int,
    *,
    t_start: Array | None = None,
    t_end: Array | None = None,
    updates: int = 500,
) -> Array:
    """DMN: the grid on which errors of the predictions are amplified least.

    Minimises :func:`dmn_bound` by Adam over the logarithms of the steps in half log SNR, from equal
    ones. Needs no network. Xue et al. 2024 (arXiv 2402.17376), section 4; the paper's optimiser is
    a trust region with constraints.

    Args:
        schedule: The forward process.
        steps: Steps of the grid.
        t_start: Latest time; the schedule's ``t_max`` if not given.
        t_end: Earliest; the schedule's ``t_min`` if not given.
        updates: Of Adam; the best iterate is kept.
    """
    import optax

    start = timesteps.log_snr(schedule, steps, t_start=t_start, t_end=t_end)
    ends = [half_log_snr(schedule, t) for t in (start[0], start[-1])]

    def grid(logits: Array) -> Array:
        shares = jnp.cumsum(jax.nn.softmax(logits))[:-1]
        inner = schedule.time(ends[0] + (ends[1] - ends[0]) * shares)
        return jnp.concatenate([start[:1], inner, start[-1:]])

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, updates))
    bound = jax.value_and_grad(lambda logits: jnp.log(dmn_bound(schedule, grid(logits))))

    @jax.jit
    def descend(logits):
        def body(carry, _):
            logits, state, best, least = carry
            value, gradient = bound(logits)
            best = jnp.where(value < least, logits, best)
            change, state = optimizer.update(gradient, state)
            return (logits + change, state, best, jnp.minimum(value, least)), None

        carry = (logits, optimizer.init(logits), logits, jnp.asarray(jnp.inf, logits.dtype))
        return grid(jax.lax.scan(body, carry, None, updates)[0][2])

    return descend(jnp.zeros(steps, start.dtype))


def dmn_bound(schedule: Schedule, ts: Array) -> Array:
    r"""How much errors of ``x0`` of size ``sigma^2 / alpha`` can move the end of a solve.

    .. math:: \sum_{i < 3} \Big| (w_{in} e_n)_n \Big|_2 +
              \sum_n \Big| \sum_{i \ge 3} w_{in} \Big|\, e_n, \qquad e_n = \sigma_n^2 / \alpha_n

    with ``w_in`` the weight, over ``sigma`` at the end of the step, of prediction ``n`` in step
    ``i`` of third-order DPM-Solver++, whose order rises from 1 and falls to 1.

    Args:
        schedule: The forward process.
        ts: Decreasing times, ``(steps + 1,)``.
    """
    steps, order = ts.shape[0] - 1, 3
    plan = multistep(schedule, order=order, solver_type="taylor", halved_curvature=False).plan(ts)
    index = jnp.arange(steps)
    sigma, alpha = schedule.sigma(ts), schedule.alpha(ts)
    weights = jnp.zeros((steps, steps), ts.dtype)
    for back in range(min(order, steps)):
        rows = index[back:]
        weights = weights.at[rows, rows - back].set(plan.values[back][rows] / sigma[1:][rows])
    errors = weights * (sigma**2 / alpha)[:-1]
    # Each of the first steps has a weight that is not zero, so the roots have gradients.
    first = jnp.sqrt(jnp.square(errors[:order]).sum(axis=1)).sum()
    return first + jnp.abs(errors[order:].sum(axis=0)).sum()
