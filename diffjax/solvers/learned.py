r"""Learned samplers: the times and the weights that serve one network best at so many calls.

Every deterministic solver of one call a step is a table. With ``m_j`` the ``x0`` predicted by call
``j``, call ``i`` is made at

.. math:: y_i = w_{i0}\, x_T + \sum_{j<i} w_{i,j+1}\, m_j, \qquad m_i = x_0(y_i, \tau_i)

and the last row of the table is the result. ``fit`` finds the grid of a given solver, or the table
itself, starting from the best of several solvers and grids, by descent on the distance to a fine
solve from the same noise. The tables are the non-stationary solvers of Shaul et al. 2024 (arXiv
2403.01329); the grids and the shifted times ``tau`` of the calls are those of Tong et al. 2025
(LD3, arXiv 2405.15506).
"""

import functools
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict, Prediction
from diffjax.schedules import Schedule, half_log_snr, prior
from diffjax.solvers import gauss_newton, timesteps
from diffjax.solvers.adams import ipndm
from diffjax.solvers.base import Solution, Solver, Span, denoise, solve
from diffjax.solvers.gauss_newton import Table
from diffjax.solvers.multistep import multistep
from diffjax.solvers.unipc import unipc
from diffjax.typing import Array, Key

__all__ = ["Fitted", "fit", "load", "sample", "save", "solver", "table"]

# Rows of a batch; at most so many starts, iterations and updates: a call's cost may allow fewer.
_ROWS, _STARTS, _ITERATIONS, _UPDATES = 256, 65_536, 12, 6_000
# Where the grids that are tried first end, as a share of the way from no noise.
_ENDS = (0.0, 0.08, 0.16, 0.24, 0.32, 0.4)
# And where they may start, if the noise there is what is drawn.
_BEGINS = (0.1, 0.2)


class Fitted(NamedTuple):
    """A learned sampler: arrays alone, to be saved with the network that they were fitted to.

    Attributes:
        ts: The grid, decreasing to 0, ``(calls + 1,)``; with learned weights, that of
            the solver that the fit began with.
        times: The time told to the network by each call, ``(calls,)``.
        weights: The table, lower triangular, ``(calls + 1, calls + 1)``.
    """

    ts: Array
    times: Array
    weights: Array


def sample(fitted: Fitted, predict: Predict, schedule: Schedule, x: Array) -> Solution:
    """Draws with a learned sampler.

    Costs ``calls`` calls of ``predict``, that of the step to the data included.

    Args:
        fitted: From :func:`fit`.
        predict: The network that it was fitted to, seen through its schedule.
        schedule: The schedule that it was fitted on.
        x: Start, ``(batch, ...)``, at ``schedule.t_max``.

    Raises:
        ValueError: It was fitted on a schedule that starts elsewhere.
    """
    start = fitted.ts[0]
    if not isinstance(start, jax.core.Tracer) and not np.isclose(start, schedule.t_max, rtol=1e-4):
        raise ValueError(
            f"learned.sample: fitted from t={float(start):g}, but the schedule starts at "
            f"{float(schedule.t_max):g}: fit on the schedule that is sampled"
        )
    return solve(solver(fitted), predict, x, fitted.ts)


def solver(fitted: Fitted) -> Solver:
    """The solver of a table, for the grid ``fitted.ts``. One network call a step."""
    calls = fitted.times.shape[0]

    def init(x: Array) -> Array:
        return jnp.zeros((calls + 1, *x.shape), x.dtype).at[0].set(x)

    def step(predict, x, known, span, key):
        del key
        time, row = span.plan
        value = predict(x, time).x0.astype(x.dtype)
        known = known.at[span.index + 1].set(value)
        return jnp.tensordot(row.astype(x.dtype), known, axes=1), known

    return Solver(init, step, evaluations=1, plan=lambda ts: (fitted.times, fitted.weights[1:]))


def save(path: str | os.PathLike, fitted: Fitted) -> None:
    """Writes a learned sampler as ``.npz``; its directory is made if need be."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.asarray(leaf) for name, leaf in fitted._asdict().items()})


def load(path: str) -> Fitted:
    """Reads what :func:`save` wrote.

    Raises:
        ValueError: There is no such file, or it holds something else.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no learned sampler {path}: make one with --mode fit")
    try:
        with np.load(path) as file:
            return Fitted(*(jnp.asarray(file[name]) for name in Fitted._fields))
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} holds no learned sampler: {error}") from error


def table(solver: Solver, schedule: Schedule, ts: Array) -> Array:
    """The table of a solver on a grid, and then the step to the data.

    The solver is run on unit vectors: its state is its own row of the table, and the prediction of
    call ``j`` is the unit vector ``j + 1``. Differentiable in ``ts``; costs no network call.

    Args:
        solver: Deterministic, linear in the predictions, of one call a step.
        schedule: The forward process.
        ts: Decreasing times, ``(steps + 1,)``, none of them 0.

    Returns:
        Weights ``(steps + 2, steps + 2)`` of ``steps + 1`` calls.
    """
    steps = ts.shape[0] - 1
    units = jnp.eye(steps + 2, dtype=ts.dtype)

    def body(carry, scanned):
        row, memory = carry
        t, t_next, index, plan = scanned

        def probe(x: Array, t: Array) -> Prediction:
            x0 = units[index + 1][None]
            return Prediction(x0, (x - schedule.alpha(t) * x0) / schedule.sigma(t))

        span = Span(t, t_next, index, steps - index, plan)
        after, memory = solver.step(probe, row, memory, span, None)
        return (after.astype(row.dtype), memory), row[0]

    index = jnp.arange(steps, dtype=jnp.int32)
    scanned = (ts[:-1], ts[1:], index, solver.plan(ts))
    (last, _), rows = jax.lax.scan(body, (units[:1], solver.init(units[:1])), scanned)
    return jnp.concatenate([rows, last, units[-1:]])


def fit(
    predict: Predict,
    schedule: Schedule,
    *,
    steps: int,
    x_T: Array,
    key: Key,
    solver: Solver | None = None,
    teacher_steps: int = 120,
    flops: float = 1e13,
) -> Fitted:
    r"""Fits a sampler of ``steps`` calls to a network.

    .. math:: \min\ E\, |\hat x_0(x_T) - x_0^*(x_T)|^2

    over the time told to the network by each call and all weights of each step, with ``x_0^*`` a
    fine solve from the same noise, denoised. It begins with the best of some solvers and grids, and
    goes on by Gauss-Newton and Adam (:mod:`~diffjax.solvers.gauss_newton`); activations of the
    network are recomputed (``jax.checkpoint``), so that memory does not grow with the calls.

    Starts beside ``x_T`` are drawn from the prior, as few hundred alone are learned by heart. An
    eighth of the noise is held out, and chooses among the iterates; the first is the untrained
    solver.

    Args:
        predict: The network seen through its schedule; guidance included, if it is to be used.
        schedule: The forward process.
        steps: Network calls, at least 2, the step to the data included.
        x_T: Noise to start from, ``(n, ...)``. A ``predict`` that holds something for each row,
            such as labels, sees whole batches of the same ``n`` rows in order; any other sees
            batches of at most 256.
        key: For the noise and the choice of starts.
        solver: Learn the grid of this solver alone: deterministic, of one call a step. None learns
            weights too.
        teacher_steps: Steps of the fine solve, DPM-Solver++ of third order.
        flops: Arithmetic to spend, by XLA's count for one call: what is left after the caps of
            65,536 starts, 12 iterations and 6,000 updates is not used. The default is minutes on
            two cores.

    Returns:
        The :class:`Fitted`.

    Raises:
        ValueError: Too few steps, a solver that is not of this kind, or noise that is not finite.
    """
    _check(steps, x_T, solver)
    x_T, rows = _whole_batches(predict, jnp.asarray(x_T))
    draws, iterations, updates = _affordable(
        predict, schedule, x_T, rows, steps, teacher_steps, flops
    )
    noise, order = jax.random.split(key)
    starts = _starts(schedule, x_T, rows, draws, noise)

    @jax.jit
    def teacher(starts):
        fine = multistep(schedule, order=3, halved_curvature=False)
        ts = timesteps.log_snr(schedule, teacher_steps)

        def one(x):
            return denoise(predict, solve(fine, predict, x, ts).x, ts[-1]).x

        return jax.lax.map(one, starts)

    exact = teacher(starts)
    grid, begun = _begin(predict, schedule, steps, starts, exact, solver)
    if solver is None:
        params, build = _of_table(schedule, begun), functools.partial(_table, schedule, steps)
    else:
        params, build = _of_grid(schedule, grid), functools.partial(_on_grid, schedule, solver)
    found = gauss_newton.descend(
        predict, build, params, starts, exact, order, iterations=iterations, updates=updates
    )
    learnt = build(found)
    ts = grid if solver is None else learnt.times
    return Fitted(jnp.append(ts, 0.0), learnt.times, learnt.weights)


def _check(steps: int, x_T: Array, solver: Solver | None) -> None:
    if steps < 2:
        raise ValueError(f"learned.fit: steps={steps}; a grid is learned from 2 calls on")
    if jnp.ndim(x_T) < 2 or not bool(jnp.isfinite(x_T).all()):
        raise ValueError(
            f"learned.fit: x_T must be finite noise (n, ...), got shape {jnp.shape(x_T)}"
        )
    if solver is not None and solver.evaluations != 1:
        raise ValueError(
            f"learned.fit: the solver takes {solver.evaluations} calls a step; use one that takes "
            "1, such as ddim, multistep or unipc"
        )


def _whole_batches(predict: Predict, x_T: Array) -> tuple[Array, int]:
    """The given noise in whole batches, and their rows: all rows, where ``predict`` needs them."""
    rows = x_T.shape[0]
    if rows > _ROWS:
        part = jax.ShapeDtypeStruct((_ROWS, *x_T.shape[1:]), x_T.dtype)
        try:
            jax.eval_shape(lambda x: predict(x, jnp.asarray(0.5, x.dtype)), part)
            rows = _ROWS
        except (TypeError, ValueError):  # it holds labels, say, of its own rows
            pass
    return x_T[: x_T.shape[0] // rows * rows], rows


def _affordable(predict, schedule, x_T, rows, steps, teacher_steps, flops) -> tuple[int, ...]:
    """Batches of starts, iterations and updates that the arithmetic allowed pays for."""
    call = jax.jit(lambda x: predict(x, jnp.asarray(schedule.t_max, x.dtype)).x0)
    cost = call.lower(x_T[:rows]).cost_analysis() or {}
    batch = max(float(cost.get("flops", 0.0)), 1.0)
    # A quarter for the teacher. An iteration runs all starts once, and an eighth of them as if 17
    # times: seven tables, and two forward and four backward passes. An update is a forward pass,
    # another for what was not kept, and a backward pass of twice the work.
    draws = max(min(int(flops / 4 / (batch * (teacher_steps + 1))), _STARTS // rows), 8)
    left = flops * 3 / 4 / (batch * steps)
    iterations = max(min(int(left / 2 / (3 * draws)), _ITERATIONS), 4)
    updates = int((left - 3 * draws * iterations) / 4)
    return draws, iterations, max(min(updates, _UPDATES), 100)


def _starts(schedule: Schedule, x_T: Array, rows: int, draws: int, key: Key) -> Array:
    """The given noise first, then fresh noise, ``(draws, rows, ...)``; at least half is fresh."""
    given = x_T.reshape(-1, rows, *x_T.shape[1:])[: max(draws // 2, 1)]
    fresh = draws - given.shape[0]
    shape = (fresh * rows, *x_T.shape[1:])
    drawn = prior(schedule, schedule.t_max, shape, key).astype(x_T.dtype)
    return jnp.concatenate([given, drawn.reshape(fresh, rows, *x_T.shape[1:])])


def _begin(predict, schedule, calls, starts, exact, solver) -> tuple[Array, Table]:
    """The best untrained grid and table, of the given solver or of several."""
    lam_start, lam_end = (half_log_snr(schedule, t) for t in (schedule.t_max, schedule.t_min))
    length = lam_end - lam_start
    # A network whose calls cost much is not asked for every choice: trying costs calls, too.
    coarse = 1 if starts.shape[0] >= 32 else 3
    ends = [schedule.time(lam_end - share * length) for share in _ENDS[::coarse]]
    begins = [schedule.t_max]
    if solver is None:
        # Later than the noise is drawn for, where it is all but the same.
        late = [schedule.time(lam_start + share * length) for share in _BEGINS[::coarse]]
        begins += [t for t in late if schedule.sigma(t) > 0.99 * schedule.sigma(schedule.t_max)]
    grids = jnp.stack(
        [
            grid(schedule, calls - 1, t_start=begin, t_end=end)
            for grid in timesteps.GRIDS.values()
            for begin in begins
            for end in ends
        ]
    )
    tried = _beginnings(schedule) if solver is None else (solver,)
    tables = jnp.concatenate(
        [jax.jit(jax.vmap(lambda ts, s=s: table(s, schedule, ts)))(grids) for s in tried]
    )
    grids = jnp.tile(grids, (len(tried), 1))
    some = max(min(starts.shape[0] // 32, 4), 1)
    found = jax.jit(lambda *tables: gauss_newton.errors(predict, *tables))(
        Table(tables, grids), starts[:some], exact[:some]
    ).mean(axis=(1, 2))
    best = jnp.where(jnp.isfinite(found), found, jnp.inf).argmin()
    return grids[best].at[0].set(schedule.t_max), Table(tables[best], grids[best])


def _beginnings(schedule: Schedule) -> tuple[Solver, ...]:
    """Of these one or another was best on all that was measured (docs/solvers.md)."""
    return (
        multistep(schedule, order=3),
        unipc(schedule),
        unipc(schedule, order=2, lower_order_final=False),
        unipc(schedule, "eps", lower_order_final=False),
        ipndm(schedule),
    )


def _of_table(schedule: Schedule, begun: Table) -> Array:
    """Parameters of a table: its weights below the first row, and half log SNR of the calls."""
    lower = begun.weights[1:][np.nonzero(np.tri(*begun.weights[1:].shape, 1))]
    return jnp.concatenate([lower, half_log_snr(schedule, begun.times)])


def _table(schedule: Schedule, calls: int, params: Array) -> Table:
    rows, columns = np.nonzero(np.tri(calls, calls + 1, 1))
    weights = jnp.eye(calls + 1, dtype=params.dtype).at[1:].set(0.0)
    weights = weights.at[rows + 1, columns].set(params[:-calls])
    return Table(weights, _inside(schedule, params[-calls:]))


def _of_grid(schedule: Schedule, ts: Array) -> Array:
    """Parameters of a grid: logarithms of its steps in half log SNR."""
    return jnp.log(jnp.diff(half_log_snr(schedule, ts)))


def _on_grid(schedule: Schedule, solver: Solver, params: Array) -> Table:
    passed = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.exp(params))])
    ts = _inside(schedule, half_log_snr(schedule, schedule.t_max) + passed)
    ts = ts.at[0].set(schedule.t_max)
    return Table(table(solver, schedule, ts), ts)


def _inside(schedule: Schedule, lam: Array) -> Array:
    return jnp.clip(schedule.time(lam), schedule.t_min, schedule.t_max)
