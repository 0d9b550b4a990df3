r"""The probability-flow ODE by general integrators with error control, through diffrax.

In the coordinates ``y = x / alpha`` and half log SNR the ODE is the same for every schedule,

.. math:: \frac{dy}{d\lambda} = -e^{-\lambda}\, \hat\epsilon(\alpha y, t), \qquad
          y = x/\alpha, \quad e^{-\lambda} = \sigma/\alpha,

and smooth where a schedule is not, as between the nodes of a chain. It is deterministic and
invertible: :func:`encode` takes data to their latents, :func:`solve_ode` takes latents to data,
:func:`spherical` goes from one latent to another. For samples alone the solvers of fixed steps cost
less.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict, evaluations
from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers.base import Solution
from diffjax.typing import Array

__all__ = ["METHODS", "encode", "integrate", "noise_field", "solve_ode", "spherical"]

METHODS = {"dopri5": "Dopri5", "kvaerno5": "Kvaerno5", "tsit5": "Tsit5"}
MAX_STEPS = 4096
FIRST_STEP = 0.05  # in half log SNR


def solve_ode(
    schedule: Schedule,
    predict: Predict,
    x: Array,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    at: Array | None = None,
    per_sample: bool = False,
    method: str = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Solution:
    """Integrates the probability-flow ODE, in either direction, to a tolerance.

    Song et al. 2021 (arXiv 2011.13456), section 4.3, whose tolerances are the defaults.

    Args:
        schedule: The forward process.
        predict: The network seen through its schedule.
        x: Start, ``(batch, ...)``.
        t_start: Time of ``x``; the schedule's ``t_max`` if not given.
        t_end: Where to stop, before or after; the schedule's ``t_min`` if not given.
        at: Times between the two, in the order they are passed, ``(n,)``, whose states to return.
        per_sample: Whether every sample has steps of its own: ``predict`` is mapped over batches of
            one, so it must close over nothing that has a row for each sample. Otherwise all take
            the same steps, which the worst sample decides.
        method: ``'tsit5'``, ``'dopri5'`` (the RK45 of the paper), or for stiff problems of few
            dimensions ``'kvaerno5'``, which is implicit: use it with ``per_sample``.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Returns:
        The :class:`Solution`, with the states at ``at`` as its trajectory, ``(n, batch, ...)``.
        ``nfe`` is an array, ``(batch,)`` if ``per_sample``; of an implicit method it counts one
        evaluation a stage, not what its equations take to solve. ``x`` is NaN where 4096 steps do
        not reach the end.

    Raises:
        ValueError: An unknown method, or ends that are not two different scalars.
    """
    t_start = schedule.t_max if t_start is None else t_start
    t_end = schedule.t_min if t_end is None else t_end
    at_lam = None if at is None else half_log_snr(schedule, at)

    def run(x: Array) -> Solution:
        y, states, calls = integrate(
            lambda lam, y: noise_field(schedule, predict, lam, y),
            x / schedule.alpha(t_start),
            half_log_snr(schedule, t_start),
            half_log_snr(schedule, t_end),
            at=at_lam,
            method=method,
            rtol=rtol,
            atol=atol,
        )
        if states is not None:
            states = expand(schedule.alpha(at), states) * states
        x_end = (schedule.alpha(t_end) * y).astype(x.dtype)
        return Solution(x_end, calls * evaluations(predict), states)

    if not per_sample:
        return run(x)
    single = jax.vmap(lambda row: run(row[None]))(x)
    states = None if at is None else jnp.swapaxes(single.trajectory[:, :, 0], 0, 1)
    return Solution(single.x[:, 0], single.nfe, states)


def encode(schedule: Schedule, predict: Predict, x: Array, **options) -> Solution:
    """The latents of data: from ``t_min`` to ``t_max``. :func:`solve_ode` takes them back.

    Args:
        schedule: The forward process.
        predict: The network seen through its schedule.
        x: Data, ``(batch, ...)``.
        **options: Those of :func:`solve_ode`.
    """
    ends = {"t_start": schedule.t_min, "t_end": schedule.t_max}
    return solve_ode(schedule, predict, x, **(ends | options))


def spherical(start: Array, end: Array, weight: Array) -> Array:
    r"""Spherical interpolation of latents, which keeps their norm where a straight line does not.

    .. math:: \frac{\sin((1-w)\theta)}{\sin\theta}\,a + \frac{\sin(w\theta)}{\sin\theta}\,b, \quad
              \cos\theta = \frac{a \cdot b}{\|a\|\,\|b\|}

    Straight where the two are parallel. Song, Meng & Ermon 2021 (DDIM), appendix D.5.

    Args:
        start: Latents ``a`` at weight 0, ``(batch, ...)``.
        end: Latents ``b`` at weight 1, of the same shape.
        weight: ``w``, a scalar or one per sample.
    """
    rows = [value.reshape(value.shape[0], -1) for value in (start, end)]
    norms = [jnp.linalg.norm(value, axis=-1) for value in rows]
    cosine = jnp.sum(rows[0] * rows[1], axis=-1) / (norms[0] * norms[1])
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    sine = jnp.sin(angle)
    parallel = sine < 1e-4
    sine = jnp.where(parallel, 1, sine)
    shares = [
        jnp.where(parallel, share, jnp.sin(share * angle) / sine) for share in (1 - weight, weight)
    ]
    return expand(shares[0], start) * start + expand(shares[1], end) * end


def noise_field(schedule: Schedule, predict: Predict, lam: Array, y: Array) -> Array:
    """``dy/dlambda`` at half log SNR ``lam`` of ``y = x / alpha``, ``(batch, ...)``."""
    t = schedule.time(lam)
    return (-jnp.exp(-lam) * predict(schedule.alpha(t) * y, t).eps).astype(y.dtype)


def integrate(
    field: Callable[[Array, Any], Any],
    state: Any,
    start: Array,
    end: Array,
    *,
    at: Array | None = None,
    method: str = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Any, Any, Array]:
    """Integrates a field over half log SNR; the worst sample, of the worst leaf, decides on steps.

    Args:
        field: ``(lam, state) -> rate``, ``lam`` a scalar.
        state: A pytree of arrays ``(batch, ...)``.
        start: Half log SNR of the state.
        end: Where to stop, before or after.
        at: Places between the two whose states to return, or None.
        method: One of ``METHODS``.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Returns:
        The state at ``end``, NaN if it was not reached; the states at ``at``, or None; and how
        often ``field`` was evaluated, an ``()`` integer.

    Raises:
        ValueError: An unknown method, or ends that are not two different scalars.
    """
    import diffrax  # as slow to import as JAX itself

    if method not in METHODS:
        raise ValueError(f"unknown ODE method {method!r}: choose one of {', '.join(METHODS)}")
    dtype = jnp.result_type(*jax.tree.leaves(state), jnp.float32)
    start, end = (jnp.asarray(lam, dtype) for lam in (start, end))
    if start.ndim or end.ndim:
        raise ValueError("an ODE is solved between two scalar times: group samples by theirs")
    solver = getattr(diffrax, METHODS[method])()
    kept = [diffrax.SubSaveAt(t1=True)]
    if at is not None:
        kept.append(diffrax.SubSaveAt(ts=jnp.asarray(at, dtype)))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda lam, state, _: field(lam, state)),
        solver,
        start,
        end,
        jnp.sign(end - start) * FIRST_STEP,
        state,
        stepsize_controller=diffrax.PIDController(rtol, atol, norm=_worst),
        saveat=diffrax.SaveAt(subs=kept),
        max_steps=MAX_STEPS,
        throw=False,
    )
    reached = solution.result == diffrax.RESULTS.successful
    states = jax.tree.map(lambda leaf: jnp.where(reached, leaf, jnp.nan), solution.ys)
    # The first stage of a step is the last of the step before.
    calls = (solver.tableau.num_stages - 1) * solution.stats["num_steps"] + 1
    last = jax.tree.map(lambda leaf: leaf[0], states[0])
    return last, None if at is None else states[1], calls


def _worst(errors: Any) -> Array:
    """The largest root mean square among samples and leaves."""
    squares = [
        jnp.square(leaf).reshape(leaf.shape[0], -1).mean(axis=-1).max()
        for leaf in jax.tree.leaves(errors)
    ]
    return jnp.sqrt(jnp.stack(squares).max())
