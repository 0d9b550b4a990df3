r"""DPM-Solver-v3: the exponential integrator whose linear part is fitted to the network.

With ``y = x / alpha`` the probability-flow ODE is ``dy/dlambda = -e^{-lambda} eps``. Three curves
over ``lambda``, one number a pixel each, leave as little as can be for finite differences:

.. math:: f = e^{-\lambda}\epsilon - l\, y, \qquad
          g(\lambda) = e^{-\int_{\lambda_t}^\lambda s} f - \int_{\lambda_t}^\lambda
          e^{-\int_{\lambda_t}^r s}\, b_r\, dr

The curves are fitted by :mod:`diffjax.solvers.model_statistics`; ``(1, 0, 0)`` is DPM-Solver++,
``(0, -1, 0)`` is DPM-Solver. Zheng, Lu, Chen & Zhu 2023 (arXiv 2310.13268).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.schedules import Schedule
from diffjax.solvers import exponential
from diffjax.solvers.base import Solver
from diffjax.solvers.linear import orders
from diffjax.solvers.model_statistics import Statistics
from diffjax.typing import Array

__all__ = ["dpm_solver_v3"]

# Gauss-Legendre nodes in a step: exact to rounding where the curves are smooth.
_NODES = 16


class Affine(NamedTuple):
    """A step to the next time: ``state x + constant + sum_j values_j f_j``.

    Attributes:
        state: Weight of the state.
        constant: What is added whatever the prediction.
        values: Weights of ``f`` from the newest on; with the one at the end of the step last of
            all, where that is known.
    """

    state: Array
    constant: Array
    values: tuple[Array, ...]


class Plan(NamedTuple):
    """What a step needs; all arrays broadcast against ``x``.

    Attributes:
        eps_weight: Of ``eps`` in ``f`` at the start of the step.
        x_weight: Of ``x`` in it.
        predict: Takes the state to the next time.
        correct: Repeats the step before with the prediction at its end.
    """

    eps_weight: Array
    x_weight: Array
    predict: Affine
    correct: Affine


class Memory(NamedTuple):
    """What the corrector starts from.

    Attributes:
        x: Corrected state at the time before.
        values: ``f`` at the times before, latest first.
    """

    x: Array
    values: tuple[Array, ...]


def dpm_solver_v3(
    schedule: Schedule,
    statistics: Statistics,
    *,
    order: int = 3,
    corrector: bool = True,
    pseudo: bool = False,
    lower_order_final: bool = True,
) -> Solver:
    r"""DPM-Solver-v3 of order 1 to 4, with the corrector of one more that costs no call.

    .. math:: \frac{x_s}{\alpha_s} = A \Big[\frac{x_t}{\alpha_t} - \int E B\, d\lambda
              - \sum_k g^{(k)} \int E \frac{(\lambda - \lambda_t)^k}{k!} d\lambda\Big]

    with ``A = exp(-int l)``, ``E = exp(int (l + s))`` from ``lambda_t`` on, ``B`` the integral of
    ``b`` in ``g``, and derivatives of ``g`` by differences over the last steps. The integrals are
    taken by quadrature within each step, at the very times of the grid. After a correction ``f``
    stays as predicted, which is the paper's shift of ``eps``. One network call a step. Zheng et al.
    2023, section 3.2 and appendix.

    Args:
        schedule: The forward process.
        statistics: The curves, from :func:`~diffjax.solvers.statistics`, with the axes of ``x``.
        order: 1 to 4, how many predictions a step uses; the first steps use fewer.
        corrector: Whether steps are corrected: better with few calls, not needed from 9 on.
        pseudo: Take the ``k``-th derivative from the nearest ``k + 1`` predictions alone, steadier
            at 5 calls.
        lower_order_final: Let the order fall to 1 over the last steps.

    Raises:
        ValueError: An order that is not offered, or curves that do not fit together.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"dpm_solver_v3: order must be 1, 2, 3 or 4, got {order}")
    curves = jnp.stack(jnp.broadcast_arrays(statistics.l, statistics.s, statistics.b), axis=1)
    if jnp.shape(statistics.lam) != curves.shape[:1] or len(curves) < 2:
        raise ValueError(
            f"dpm_solver_v3: statistics.lam has shape {jnp.shape(statistics.lam)}, which does not "
            f"fit curves of {len(curves)} points; give at least two, one for each"
        )
    weigh = _pseudo_weights if pseudo else exponential.weights

    def plan(ts: Array) -> Plan:
        steps = exponential.plan_steps(schedule, ts)
        used = orders(ts.shape[0] - 1, order, lower_order_final)
        dims = curves.ndim - 2
        # Times in front of the data's axes, with one in place of a batch where times are shared.
        lam = steps.lam.reshape(steps.lam.shape[0], -1, *(1,) * dims)
        over = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1, *(1,) * dims), steps.over)
        parts = jax.lax.map(
            lambda ends: _integrate(statistics.lam[jnp.array([0, -1])], curves, *ends, order + 1),
            (lam[:-1], lam[1:]),
        )
        level = jnp.exp(-lam[:-1])
        start = _curves(statistics.lam[jnp.array([0, -1])], curves, lam[:-1])[:, :, 0]
        ahead = _steps(over, lam, parts, used, order, weigh, ahead=False)
        if not corrector:
            back = ahead
        else:
            back = _steps(over, lam, parts, used, order, weigh, ahead=True)
            # Step i corrects step i - 1; the first has nothing to correct.
            before = np.maximum(np.arange(len(used)) - 1, 0)
            back = jax.tree.map(lambda leaf: leaf[before], back)
        return Plan(level, -start / over.alpha, ahead, back)

    def init(x: Array) -> Memory:
        if jnp.broadcast_shapes(curves.shape[2:], x.shape[1:]) != x.shape[1:]:
            raise ValueError(
                f"dpm_solver_v3: statistics of data of shape {curves.shape[2:]} do not fit x of "
                f"shape {x.shape}: fit them to data like x"
            )
        kept = order if corrector else order - 1
        return Memory(x, (jnp.zeros_like(x),) * kept)

    def step(predict, x, memory, span, key):
        del key
        planned = span.plan
        value = planned.eps_weight * predict(x, span.t).eps + planned.x_weight * x
        value = value.astype(x.dtype)
        if corrector:
            corrected = _apply(planned.correct, memory.x, (*memory.values, value))
            x = jnp.where(span.index > 0, corrected, x).astype(x.dtype)
        values = (value, *memory.values)
        return _apply(planned.predict, x, values[:order]), Memory(x, values[:-1])

    return Solver(init, step, evaluations=1, plan=plan)


def _apply(affine: Affine, x: Array, values: tuple[Array, ...]) -> Array:
    total = affine.state * x + affine.constant
    for weight, value in zip(affine.values, values, strict=True):
        total = total + weight * value
    return total


class Integrals(NamedTuple):
    """Over one step, from its start.

    Attributes:
        l: Of ``l``.
        s: Of ``s``.
        b: ``B`` at the end.
        drift: Of ``E B``.
        moments: Of ``E u^n``, ``n = 0, 1, ...``, with ``u`` from 0 to 1 over the step; stacked.
    """

    l: Array  # noqa: E741
    s: Array
    b: Array
    drift: Array
    moments: Array


def _curves(ends: Array, curves: Array, lam: Array) -> Array:
    """``l, s, b`` at some ``lam``, whose axes but those of the data come first; then the three."""
    count = curves.shape[0] - 1
    data = curves.ndim - 2
    place = jnp.clip((lam - ends[0]) / (ends[1] - ends[0]) * count, 0, count)
    low = jnp.minimum(jnp.floor(place).astype(jnp.int32), count - 1)
    part = jnp.expand_dims(place - low, lam.ndim - data)
    low = low.reshape(low.shape[: lam.ndim - data])
    return (1 - part) * curves[low] + part * curves[low + 1]


def _integrate(ends: Array, curves: Array, lam: Array, lam_next: Array, count: int) -> Integrals:
    """The integrals over one step, ``lam`` being ``(batch or 1, 1, ...)``, by collocation."""
    nodes, mass, up_to = _collocation()
    h = lam_next - lam
    u = jnp.asarray(nodes, h.dtype).reshape(-1, *(1,) * h.ndim)
    l, s, b = jnp.moveaxis(_curves(ends, curves, lam + u * h), 2, 0)  # noqa: E741

    def so_far(values: Array) -> Array:
        return h * _contract(up_to, values)

    def whole(values: Array) -> Array:
        return h * _contract(mass, values)

    l_so_far, s_so_far = so_far(l), so_far(s)
    grown, source = jnp.exp(l_so_far + s_so_far), jnp.exp(-s_so_far) * b
    return Integrals(
        whole(l),
        whole(s),
        whole(source),
        whole(grown * so_far(source)),
        jnp.stack([whole(grown * u**n) for n in range(count)]),
    )


def _contract(table: np.ndarray, values: Array) -> Array:
    return jnp.tensordot(
        jnp.asarray(table, values.dtype), values, axes=1, precision=jax.lax.Precision.HIGHEST
    )


def _collocation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes in (0, 1), weights of the integral over it, and of those from 0 to each node."""
    points, mass = np.polynomial.legendre.leggauss(_NODES)
    # The polynomial through values at the nodes, in Legendre's basis, integrated exactly.
    to_basis = np.stack(
        [
            (2 * n + 1) / 2 * mass * np.polynomial.legendre.Legendre.basis(n)(points)
            for n in range(_NODES)
        ]
    )
    integrals = np.stack(
        [np.polynomial.legendre.Legendre.basis(n).integ(lbnd=-1)(points) for n in range(_NODES)],
        axis=-1,
    )
    return (points + 1) / 2, mass / 2, integrals @ to_basis / 2


def _steps(over, lam, parts: Integrals, used, order: int, weigh, *, ahead: bool) -> Affine:
    """Weights of every step from its integrals and those of the steps before."""
    rows_of = {count: np.flatnonzero(used == count) for count in map(int, np.unique(used))}
    shape = (len(used), *jnp.broadcast_shapes(parts.l.shape[1:], lam.shape[1:]))
    values = [jnp.zeros(shape, parts.l.dtype) for _ in range(order + ahead)]
    constant = jnp.zeros(shape, parts.l.dtype)
    outer = -over.alpha_next * jnp.exp(-parts.l)
    for count, rows in rows_of.items():
        h = lam[rows + 1] - lam[rows]
        # g at the predictions, from f there: factor f - offset, with s and b integrated back.
        nodes, factors, offsets = [jnp.zeros_like(h)], [jnp.ones_like(h)], [jnp.zeros_like(h)]
        for j in range(1, count):
            back = rows - j
            grown = factors[-1] * jnp.exp(parts.s[back])
            offsets.append(offsets[-1] - grown * parts.b[back])
            factors.append(grown)
            nodes.append((lam[back] - lam[rows]) / h)
        places = list(range(count))
        if ahead:
            nodes, places = [*nodes, jnp.ones_like(h)], [*places, order]
            factors.append(jnp.exp(-parts.s[rows]))
            offsets.append(parts.b[rows])
        found = weigh(nodes, [parts.moments[rows, n] for n in range(len(nodes))])
        shift = parts.drift[rows]
        for place, weight, factor, offset in zip(places, found, factors, offsets, strict=True):
            shift = shift - weight * offset
            values[place] = values[place].at[rows].set(outer[rows] * weight * factor)
        constant = constant.at[rows].set(outer[rows] * shift)
    state = over.alpha_next / over.alpha * jnp.exp(-parts.l)
    return Affine(state, constant, tuple(values))


def _pseudo_weights(nodes: list[Array], moments: list[Array]) -> list[Array]:
    """Weights where the coefficient of ``u^k`` is the ``k``-th divided difference, from 0 on."""
    found = []
    for j, node in enumerate(nodes):
        shares = []
        for k in range(j, len(nodes)):
            gaps = [node - other for i, other in enumerate(nodes[: k + 1]) if i != j]
            shares.append(moments[k] / math.prod(gaps))
        found.append(sum(shares))
    return found
