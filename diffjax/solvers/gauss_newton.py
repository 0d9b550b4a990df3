r"""Gauss-Newton for tables: what :func:`~diffjax.solvers.learned.fit` descends by.

A table has few parameters and every start tells something of all of them, so second order is cheap.
With :math:`k_i` added to the state after call ``i``, backpropagation takes a cotangent ``c`` of the
end to :math:`a_i = (\partial y / \partial k_i)^T c`, and

.. math:: \frac{\partial\, c \cdot y}{\partial w_{ij}} = a_i \cdot m_j

for every weight and every start at once. One cotangent is the error, which gives the gradient; some
are random signs, for which :math:`E[g g^T]` is :math:`J^T J` (Hutchinson), whatever the size of an
example. Damping is Levenberg's and Marquardt's, chosen among several at each step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict, evaluations, with_evaluations
from diffjax.typing import Array, Key

__all__ = ["Table", "descend", "errors"]

# Random cotangents of a start, and dampings tried at a step, relative to the last.
_SIGNS = 3
_DAMPINGS = 4.0 ** np.arange(-2, 4)
# Looks at all starts in between the updates of Adam.
_ROUNDS = 12


class Table(NamedTuple):
    """What a sampler computes with: see :class:`~diffjax.solvers.learned.Fitted`.

    Attributes:
        weights: Lower triangular, ``(calls + 1, calls + 1)``, the first row a unit vector.
        times: Told to the network, ``(calls,)``.
    """

    weights: Array
    times: Array


def descend(
    predict: Predict,
    build: Callable[[Array], Table],
    params: Array,
    starts: Array,
    exact: Array,
    key: Key,
    *,
    iterations: int,
    updates: int,
) -> Array:
    r"""Levenberg-Marquardt on the mean squared error at the end, then Adam in its coordinates.

    .. math:: \theta \leftarrow \theta - (G + \delta\, \mathrm{diag}\, G)^{-1} \nabla L

    The error lies in the few starts on the edge between two outcomes: those are taken more often,
    with weights that keep the mean what it is. There gradients are huge and true for the smallest
    steps only, where Gauss-Newton stops; small noisy steps of Adam go on. An eighth of the starts
    is held out, and chooses among the iterates, the first of them included.

    Args:
        predict: The network seen through its schedule.
        build: Parameters ``(n,)`` to a table; differentiable.
        params: Where to begin.
        starts: Noise, ``(batches, rows, ...)``.
        exact: Where it should end, of the same shape.
        key: For the choice of starts and the random signs.
        iterations: Steps of Gauss-Newton, each on an eighth of the starts.
        updates: Of Adam, each on one batch.

    Returns:
        The best parameters on the held-out starts.
    """
    first, second = jax.random.split(key)
    problem = predict, build, starts, exact
    params, coordinates = _marquardt(*problem, np.asarray(params, np.float64), first, iterations)
    return _adam(*problem, _single(params), _single(coordinates), second, updates)


def _marquardt(predict, build, starts, exact, params, key, iterations):
    """The best parameters, and the coordinates in which the last curvature is one."""
    draws, rows = starts.shape[:2]
    used, batches = draws - max(draws // 8, 1), max(draws // 8, 1)
    found = jax.jit(lambda tables, *pair: errors(predict, tables, *pair))
    gradients = jax.jit(lambda table, *batch: _gradients(predict, table, *batch))
    tables = jax.jit(jax.vmap(build))
    jacobian = jax.jit(jax.jacfwd(lambda params: _flat(build(params))))
    best, least, damping = params, np.inf, 0.1
    row = np.arange(rows)
    for step_key in jax.random.split(key, iterations):
        every = np.asarray(found(tables(_single(params[None])), starts, exact)[0], np.float64)
        if every[used:].mean() < least:
            best, least = params, every[used:].mean()
        pick_key, sign_key = jax.random.split(step_key)
        offset = np.asarray(jax.random.uniform(pick_key, (rows,)))
        pick, importance = _pick(every[:used], batches, offset)
        batch = starts[pick, row], exact[pick, row]
        keys = jax.random.split(sign_key, batches)
        moved = np.asarray(gradients(build(_single(params)), *batch, keys), np.float64)
        # By parameters in place of by weights and times.
        moved = moved @ np.asarray(jacobian(_single(params)), np.float64)
        gradient, curvature, size = _normal(moved, importance)
        dampings, tried = damping * _DAMPINGS, [params]
        for value in dampings:
            damped = curvature + np.diag(value * np.diagonal(curvature) + 1e-12)
            tried.append(params - np.linalg.solve(damped, gradient) / size)
        reached = np.asarray(found(tables(_single(np.stack(tried))), *batch), np.float64)
        means = (importance * reached).mean(axis=(1, 2))
        chosen = int(np.where(np.isfinite(means), means, np.inf).argmin())
        params = tried[chosen]
        damping = np.clip(dampings[chosen - 1] if chosen else damping * 16, 1e-6, 1e6)
    last = float(found(tables(_single(params[None])), starts[used:], exact[used:]).mean())
    damped = curvature + np.diag(1e-2 * np.diagonal(curvature) + 1e-12)
    coordinates = np.linalg.inv(np.linalg.cholesky(damped)).T / size[:, None]
    return (params if last < least else best), coordinates


def _adam(predict, build, starts, exact, origin, coordinates, key, updates) -> Array:
    """The best iterate on the held-out starts, the first of them included."""
    import optax

    draws, rows = starts.shape[:2]
    used, length = draws - max(draws // 8, 1), max(updates // _ROUNDS, 1)
    row = jnp.arange(rows)
    recomputed = with_evaluations(jax.checkpoint(predict), evaluations(predict))

    def loss(place, x, target, importance):
        table = build(origin + coordinates @ place)
        return (importance * _errors(recomputed, table, x, target)).mean()

    @jax.jit
    def look(params):
        table = build(params)
        every = jax.lax.map(lambda pair: _errors(predict, table, *pair), (starts, exact))
        return every[used:].mean(), _chances(every[:used])

    place = jnp.zeros_like(origin)
    least, chance = look(origin)
    # A step of the error's root along one coordinate changes the end by about the error; where a
    # coordinate changes next to nothing, the parameters bound the step.
    peak = 0.03 * float(least) ** 0.5
    reach = peak * jnp.abs(coordinates).max(axis=0)
    coordinates = coordinates / jnp.maximum(reach / 0.03, 1.0)
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, length, length * _ROUNDS)
    optimizer = optax.adam(rate, b2=0.99)

    @jax.jit
    def improve(place, state, chance, key):
        reached = jnp.cumsum(chance, axis=0)

        def body(carry, key):
            place, state = carry
            point = jax.random.uniform(key, (rows,), reached.dtype)
            pick = jnp.minimum((point > reached).sum(axis=0), used - 1)
            importance = 1 / (used * chance[pick, row])
            gradient = jax.grad(loss)(place, starts[pick, row], exact[pick, row], importance)
            change, state = optimizer.update(gradient, state)
            return (optax.apply_updates(place, change), state), None

        return jax.lax.scan(body, (place, state), jax.random.split(key, length))[0]

    best, state = place, optimizer.init(place)
    for round_key in jax.random.split(key, _ROUNDS):
        place, state = improve(place, state, chance, round_key)
        error, chance = look(origin + coordinates @ place)
        if error < least:
            best, least = place, error
    return origin + coordinates @ best


def errors(predict: Predict, tables: Table, starts: Array, exact: Array) -> Array:
    """Mean squared error of every start with each of some tables, ``(tables, batches, rows)``."""
    return jax.lax.map(
        lambda table: jax.lax.map(lambda pair: _errors(predict, table, *pair), (starts, exact)),
        tables,
    )


def _errors(predict: Predict, table: Table, x: Array, target: Array) -> Array:
    still = jnp.zeros(table.times.shape, x.dtype)
    end, _ = _rollout(predict, table.weights, table.times, x, still)
    return jnp.square(end - target).mean(axis=tuple(range(1, x.ndim)))


def _rollout(predict: Predict, weights: Array, times: Array, x: Array, kicks: Array):
    """The end, and all that the weights act on, with ``kicks`` added to the states."""
    calls = times.shape[0]
    known = jnp.zeros((calls + 1, *x.shape), x.dtype).at[0].set(x)

    def body(carry, scanned):
        y, known = carry
        index, time, row, kick = scanned
        known = known.at[index + 1].set(predict(y, time).x0.astype(x.dtype))
        return (jnp.tensordot(row.astype(x.dtype), known, axes=1) + kick, known), None

    scanned = (jnp.arange(calls), times, weights[1:], kicks)
    return jax.lax.scan(body, (x, known), scanned)[0]


def _gradients(predict: Predict, table: Table, starts: Array, exact: Array, keys: Key) -> Array:
    """By weights and times, ``(batches, 1 + signs, rows, n)``: of half the error, then of signs."""
    calls = table.times.shape[0]
    predict = with_evaluations(jax.checkpoint(predict), evaluations(predict))

    def batch(scanned):
        x, target, key = scanned
        size = target[0].size

        def run(kicks, times):
            return _rollout(predict, table.weights, times, x, kicks)

        kicks = jnp.zeros((calls, *x.shape), x.dtype)
        times = jnp.broadcast_to(table.times[:, None], (calls, x.shape[0]))
        end, back, known = jax.vjp(run, kicks, times, has_aux=True)
        signs = jax.random.rademacher(key, (_SIGNS, *x.shape), x.dtype)
        wanted = jnp.concatenate([(end - target)[None] / size, signs / np.sqrt(size)])
        adjoints, by_times = jax.lax.map(back, wanted)
        adjoints = adjoints.reshape(*adjoints.shape[:3], -1)
        known = known.reshape(*known.shape[:2], -1)
        by_weights = jnp.einsum("cird,jrd->crij", adjoints, known)
        by_weights = by_weights[..., *_places(calls)]
        return jnp.concatenate([by_weights, jnp.swapaxes(by_times, 1, 2)], axis=-1)

    return jax.lax.map(batch, (starts, exact, keys))


def _chances(errors: Array) -> Array:
    """How often to take each start; each row's sum to 1."""
    # The root is near the norm of the gradient; the floor keeps easy starts from being lost.
    chance = (errors + 0.05 * errors.mean() + 1e-30) ** 0.5
    return chance / chance.sum(axis=0)


def _pick(errors: np.ndarray, batches: int, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts for each row, ``(batches, rows)``, and their importance; by systematic sampling."""
    chance = _chances(errors)
    points = (np.arange(batches)[:, None] + offset) / batches
    columns = zip(np.cumsum(chance, axis=0).T, points.T, strict=True)
    pick = np.stack([np.searchsorted(*column) for column in columns], axis=1)
    pick = np.minimum(pick, errors.shape[0] - 1)
    return pick, 1 / (errors.shape[0] * np.take_along_axis(chance, pick, axis=0))


def _normal(moved: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gradient and curvature by parameters in units of one over their size; and the size."""
    size = np.sqrt((moved[:, 1:] ** 2).mean(axis=(0, 1, 2))) + 1e-12
    scaled = moved / size
    gradient = np.einsum("brp,br->p", scaled[:, 0], importance) / importance.size
    signs = (scaled[:, 1:] * np.sqrt(importance)[:, None, :, None]).reshape(-1, size.size)
    return gradient, signs.T @ signs / (importance.size * _SIGNS), size


def _places(calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, the first left out, and columns of the weights that may be other than 0."""
    return np.nonzero(np.tri(calls, calls + 1, 1))


def _flat(table: Table) -> Array:
    """Weights and times in the order of :func:`_gradients`."""
    return jnp.concatenate([table.weights[1:][_places(table.times.shape[0])], table.times])


def _single(params: np.ndarray) -> Array:
    # Steps are solved for in double precision; the network runs in its own.
    return jnp.asarray(params, jnp.result_type(float))
