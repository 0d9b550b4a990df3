"""Adaptive DPM-Solver: the step follows the difference of two orders."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict, evaluations
from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers import exponential, timesteps
from diffjax.solvers.base import Solution
from diffjax.solvers.linear import combine
from diffjax.solvers.singlestep import DEFAULT_PLACES, plan_stages
from diffjax.typing import Array

__all__ = ["solve_adaptive"]

SAFETY = 0.9
FIRST_STEP = 0.05  # in half log SNR
CLOSE = 1e-5  # times so close are the end


class Run(NamedTuple):
    """Where an adaptive run stands.

    Attributes:
        x: State.
        lower: Lower-order state of the last accepted step, which scales the tolerance.
        t: Time, ``()`` or ``(batch,)``.
        h: Length of the next step in half log SNR, of ``t``'s shape.
        calls: Calls of ``predict`` made, of ``t``'s shape.
    """

    x: Array
    lower: Array
    t: Array
    h: Array
    calls: Array


def solve_adaptive(
    schedule: Schedule,
    predict: Predict,
    x: Array,
    *,
    order: int = 2,
    expansion: str = "x0",
    solver_type: str = "dpmsolver",
    t_start: float | None = None,
    t_end: float | None = None,
    atol: float = 0.0078,
    rtol: float = 0.05,
    per_sample: bool = True,
) -> Solution:
    r"""DPM-Solver-12 or -23 with steps chosen by the error, in one ``lax.while_loop``.

    A step is taken when ``E <= 1`` and then grows or shrinks by ``0.9 E^{-1/order}``, where

    .. math:: E = \Big\| \frac{x_{high} - x_{low}}{\max(atol,\ rtol \max(|x_{low}|, |x_{prev}|))}
              \Big\|_{rms}

    Lu et al. 2022 (arXiv 2206.00927), appendix C. Calls the network ``order`` times a trial, also
    for steps that are refused. Cannot be differentiated in reverse mode.

    Args:
        schedule: The forward process.
        predict: The network seen through its schedule.
        x: Start, ``(batch, ...)``.
        order: 2 or 3: of the better of the two solutions.
        expansion: ``'x0'`` or ``'eps'``.
        solver_type: As in :func:`~diffjax.solvers.singlestep`.
        t_start: Time of ``x``; the schedule's ``t_max`` if not given.
        t_end: Where to stop; the schedule's ``t_min`` if not given.
        atol: Absolute tolerance; 0.0078 is 2/256.
        rtol: Relative tolerance.
        per_sample: Whether every sample has steps of its own, so that it does not depend on the
            others in its batch; otherwise the worst sample of the batch decides, as published.

    Returns:
        The :class:`Solution`; ``nfe`` is an array, ``(batch,)`` if ``per_sample``: evaluations
        until that sample was done. Where no step can be found, since the prediction is not finite,
        ``x`` is NaN.

    Raises:
        ValueError: An unknown order or expansion, or ends that are not two decreasing scalars.
    """
    if order not in (2, 3):
        raise ValueError(f"solve_adaptive: order must be 2 or 3, got {order}")
    expanded = exponential.expansion(expansion)
    if any(t is not None and jnp.ndim(t) for t in (t_start, t_end)):
        raise ValueError(
            "solve_adaptive: t_start and t_end must be scalars: an adaptive run has no per-sample "
            "times; group samples by their times"
        )
    t_start, t_end = timesteps.ends(schedule, t_start, t_end)
    lam_end = half_log_snr(schedule, t_end)
    shape = x.shape[:1] if per_sample else ()
    places = list(DEFAULT_PLACES[order])

    def running(run: Run) -> Array:
        return (jnp.abs(run.t - t_end) > CLOSE) & jnp.isfinite(run.h)

    def trial(run: Run) -> Run:
        lam = half_log_snr(schedule, run.t)
        ts = jnp.stack([run.t, schedule.time(lam + run.h)])
        high, low = (
            jax.tree.map(lambda leaf: leaf[0], plan_stages(schedule, expanded, ts, at, solver_type))
            for at in (places, places[:-1])
        )
        values = (expanded.quantity(predict(run.x, run.t)),)
        for t, weights in zip(high.times, high.weights[:-1], strict=True):
            values += (expanded.quantity(predict(combine(weights, run.x, values), t)),)
        better = combine(high.weights[-1], run.x, values)
        worse = combine(low.weights[-1], run.x, values[:-1])
        scale = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(worse), jnp.abs(run.lower)))
        error = jnp.sqrt(jnp.mean(((better - worse) / scale) ** 2, axis=range(1, x.ndim)))
        if not per_sample:
            error = error.max()
        going = running(run)
        taken = going & (error <= 1)
        t = jnp.where(taken, ts[1], run.t)
        rest = lam_end - half_log_snr(schedule, t)
        # The published code rounds the factor to float32, which a chain of steps remembers.
        factor = (error ** (-1 / order)).astype(jnp.float32)
        return Run(
            jnp.where(expand(taken, x), better, run.x).astype(x.dtype),
            jnp.where(expand(taken, x), worse, run.lower).astype(x.dtype),
            t,
            jnp.where(going, jnp.minimum(SAFETY * run.h * factor, rest), run.h),
            run.calls + order * going,
        )

    start = Run(
        x,
        x,
        jnp.broadcast_to(t_start, shape),
        jnp.full(shape, FIRST_STEP, t_start.dtype),
        jnp.zeros(shape, jnp.int32),
    )
    end = jax.lax.while_loop(lambda run: running(run).any(), trial, start)
    finished = jnp.abs(end.t - t_end) <= CLOSE
    x_end = jnp.where(expand(finished, x), end.x, jnp.nan)
    return Solution(x_end, end.calls * evaluations(predict))
