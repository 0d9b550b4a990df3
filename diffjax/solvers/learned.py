r"""Learned samplers: the times and the weights that serve one network best at so many calls.

Every deterministic solver of one call a step is a table. With ``m_j`` the ``x0`` predicted by call
``j``, call ``i`` is made at

.. math:: y_i = w_{i0}\, x_T + \sum_{j<i} w_{i,j+1}\, m_j, \qquad m_i = x_0(y_i, \tau_i)

and the last row of the table is the result. ``fit`` finds the grid of a given solver, or the table
itself, starting from DPM-Solver++(3M), by descent on the distance to a fine solve from the same
noise. The tables are the non-stationary solvers of Shaul et al. 2024 (arXiv 2403.01329); the grids
and the shifted times ``tau`` of the calls are those of Tong et al. 2025 (LD3, arXiv 2405.15506).
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict, Prediction, evaluations, with_evaluations
from diffjax.schedules import Schedule, half_log_snr, prior
from diffjax.solvers import exponential, timesteps
from diffjax.solvers.base import Solution, Solver, Span, denoise, solve
from diffjax.solvers.linear import Weights
from diffjax.solvers.multistep import multistep
from diffjax.typing import Array, Key

__all__ = ["Fitted", "fit", "load", "sample", "save", "solver", "table"]

# Predictions that a learned step may use: the newest and three before it.
TERMS = 4
# Rows of an update, and looks at the held-out noise, of which the best is kept.
_ROWS, _ROUNDS = 256, 20
# At most so many starts and updates; what a call costs may allow fewer.
_STARTS, _UPDATES = 131_072, 12_000


class Fitted(NamedTuple):
    """A learned sampler: arrays alone, to be saved with the network that they were fitted to.

    Attributes:
        ts: The grid, decreasing to 0, ``(calls + 1,)``.
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

    over the grid, the time told to the network by each call, and the weights of each step, with
    ``x_0^*`` a fine solve from the same noise, denoised. Adam through ``solve``; activations of the
    network are recomputed (``jax.checkpoint``), so that memory does not grow with the calls.

    Starts beside ``x_T`` are drawn from the prior, as few hundred alone are learned by heart: the
    error lies in the few starts that fall on the edge between two outcomes. Those are also drawn
    more often, with weights that keep the mean what it is. An eighth of the noise is held out, and
    chooses among the iterates; the first is the untrained solver.

    Args:
        predict: The network seen through its schedule; guidance included, if it is to be used.
        schedule: The forward process.
        steps: Network calls, at least 2, the step to the data included.
        x_T: Noise to start from, ``(n, ...)``. A ``predict`` that holds something for each row,
            such as labels, sees whole batches of the same ``n`` rows in order; any other sees
            batches of at most 256.
        key: For the noise and the order of the updates.
        solver: Learn the grid of this solver alone: deterministic, of one call a step. None learns
            weights too.
        teacher_steps: Steps of the fine solve, DPM-Solver++ of third order.
        flops: Arithmetic to spend, by XLA's count for one call: what is left after the caps of
            131,072 starts and 12,000 updates is not used. The default is minutes on two cores.

    Returns:
        The :class:`Fitted`.

    Raises:
        ValueError: Too few steps, a solver that is not of this kind, or noise that is not finite.
    """
    _check(steps, x_T, solver)
    x_T, rows = _whole_batches(predict, jnp.asarray(x_T))
    draws, updates = _affordable(predict, schedule, x_T, rows, steps, teacher_steps, flops)
    noise, order = jax.random.split(key)
    starts = _starts(schedule, x_T, rows, draws, noise)

    @jax.jit
    def teacher(starts):
        fine = multistep(schedule, order=3, halved_curvature=False)
        ts = timesteps.log_snr(schedule, teacher_steps)

        def one(x):
            return denoise(predict, solve(fine, predict, x, ts).x, ts[-1]).x

        return jax.lax.map(one, starts)

    params = _initial(steps, learn_weights=solver is None)
    build = functools.partial(_build, schedule=schedule, solver=solver)
    return build(
        _descend(params, build, predict, schedule, starts, teacher(starts), order, updates)
    )


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


def _affordable(predict, schedule, x_T, rows, steps, teacher_steps, flops) -> tuple[int, int]:
    """Batches of starts, and updates, that the arithmetic allowed pays for."""
    call = jax.jit(lambda x: predict(x, jnp.asarray(schedule.t_max, x.dtype)).x0)
    cost = call.lower(x_T[:rows]).cost_analysis() or {}
    batch = max(float(cost.get("flops", 0.0)), 1.0)
    # A quarter for the teacher; an update is a forward pass, another for what was not kept, and a
    # backward pass of twice the work.
    draws = int(flops / 4 / (batch * (teacher_steps + 1)))
    updates = int(flops * 3 / 4 / (batch * steps * 4))
    return max(min(draws, _STARTS // rows), 8), max(min(updates, _UPDATES), 100)


def _starts(schedule: Schedule, x_T: Array, rows: int, draws: int, key: Key) -> Array:
    """The given noise first, then fresh noise, ``(draws, rows, ...)``; at least half is fresh."""
    given = x_T.reshape(-1, rows, *x_T.shape[1:])[: max(draws // 2, 1)]
    fresh = draws - given.shape[0]
    shape = (fresh * rows, *x_T.shape[1:])
    drawn = prior(schedule, schedule.t_max, shape, key).astype(x_T.dtype)
    return jnp.concatenate([given, drawn.reshape(fresh, rows, *x_T.shape[1:])])


def _initial(calls: int, learn_weights: bool) -> dict[str, Array]:
    """Equal steps in half log SNR, the times of the calls as the grid has them, no corrections."""
    share = 1 / jnp.arange(calls, 1, -1)
    params = {"shares": jnp.log(share) - jnp.log1p(-share)}
    if learn_weights:
        params |= {
            "shift": jnp.zeros(calls),
            "state": jnp.zeros(calls),
            "values": jnp.zeros((calls, TERMS)),
        }
    return params


def _build(params: dict[str, Array], schedule: Schedule, solver: Solver | None) -> Fitted:
    """The sampler that parameters stand for.

    Each call but the first lies a share of the way that is left to ``t_min``. Corrections of the
    weights are relative to those of DDIM's step, and act on the newest prediction and on the
    differences of successive ones: so moving one keeps what the others mean.
    """
    lam_start, lam_end = (half_log_snr(schedule, t) for t in (schedule.t_max, schedule.t_min))
    left = jnp.cumprod(1 - jax.nn.sigmoid(params["shares"]))
    lam = lam_end - (lam_end - lam_start) * jnp.concatenate([jnp.ones(1), left])
    ts = schedule.time(lam).at[0].set(schedule.t_max)
    grid = jnp.append(ts, 0.0)
    if solver is not None:
        return Fitted(grid, ts, table(solver, schedule, ts))
    times = jnp.clip(schedule.time(lam + params["shift"]), schedule.t_min, schedule.t_max)
    return Fitted(grid, times, _rows(_corrected(params, schedule, ts)))


def _corrected(params: dict[str, Array], schedule: Schedule, ts: Array) -> Weights:
    """Weights of DPM-Solver++(3M) and of the step to the data, corrected."""
    plan = multistep(schedule, order=3).plan(ts)
    _, first = exponential.X0.linear(exponential.plan_steps(schedule, ts).over)
    state, first = jnp.append(plan.state, 0.0), jnp.append(first, 1.0)
    ends = (1.0, 0.0, 0.0)
    base = [jnp.append(value, end) for value, end in zip(plan.values, ends, strict=True)]
    base += [jnp.zeros_like(first)] * (TERMS - len(base))
    # Call i has i + 1 predictions, hence i differences.
    known = np.tril(np.ones((ts.shape[0], TERMS)))
    newest, *differences = (first * column for column in (params["values"] * known).T)
    ahead = [newest, *differences]
    behind = [*differences, jnp.zeros_like(first)]
    signs = [1.0, *[-1.0] * (TERMS - 1)]
    values = [
        value + sign * here + there
        for value, sign, here, there in zip(base, signs, ahead, behind, strict=True)
    ]
    return Weights(state * (1 + params["state"]), tuple(values))


def _rows(weights: Weights) -> Array:
    """The table of linear multistep weights."""
    calls = weights.state.shape[0]
    units = jnp.eye(calls + 1, dtype=weights.state.dtype)

    def body(row, scanned):
        state, values, index = scanned
        # Predictions before the first have no weight; index 0 is the start, not one of them.
        places = index + 1 - jnp.arange(TERMS)
        named = jnp.where(places[:, None] > 0, units[jnp.maximum(places, 0)], 0.0)
        after = state * row + values @ named
        return after, after

    scanned = (weights.state, jnp.stack(weights.values, -1), jnp.arange(calls))
    _, rows = jax.lax.scan(body, units[0], scanned)
    return jnp.concatenate([units[:1], rows])


def _descend(params, build, predict, schedule, starts, exact, key, updates) -> dict[str, Array]:
    """The best iterate on the held-out noise."""
    import optax

    draws, rows = starts.shape[:2]
    used = draws - max(draws // 8, 1)
    recomputed = with_evaluations(jax.checkpoint(predict), evaluations(predict))

    def errors(params: Any, x: Array, target: Array) -> Array:
        end = sample(build(params), recomputed, schedule, x).x
        return jnp.square(end - target).mean(axis=tuple(range(1, x.ndim)))

    def loss(params, x, target, importance):
        return jnp.mean(importance * errors(params, x, target))

    calls = params["shares"].shape[0] + 1
    length = max(updates // _ROUNDS, 1)
    peak = min(1e-2, 0.1 / calls)
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, length, length * _ROUNDS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))

    @jax.jit
    def look(params):
        found = jax.lax.map(lambda pair: errors(params, *pair), (starts, exact))
        # The root is near the norm of the gradient; the floor keeps easy starts from being lost.
        chance = jnp.sqrt(found[:used] + 0.05 * found[:used].mean())
        return found[used:].mean(), chance / chance.sum(axis=0)

    @jax.jit
    def improve(params, state, chance, key):
        reached = jnp.cumsum(chance, axis=0)

        def body(carry, key):
            params, state = carry
            point = jax.random.uniform(key, (rows,), reached.dtype)
            pick = jnp.minimum((point > reached).sum(axis=0), used - 1)
            row = jnp.arange(rows)
            importance = 1 / (used * chance[pick, row])
            gradient = jax.grad(loss)(params, starts[pick, row], exact[pick, row], importance)
            change, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(body, (params, state), jax.random.split(key, length))[0]

    state = optimizer.init(params)
    best, (least, chance) = params, look(params)
    for round_key in jax.random.split(key, _ROUNDS):
        params, state = improve(params, state, chance, round_key)
        error, chance = look(params)
        if error < least:
            best, least = params, error
    return best
