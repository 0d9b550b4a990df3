r"""Linear multistep methods: one network call a step, and a weighted sum of what is known.

.. math:: x_{i+1} = a_i x_i + \sum_{j=0}^{k-1} b_{ij}\, m_{i-j}

with ``m`` the predicted ``x0`` or ``eps``. A method is the rule that makes the weights from the
grid; DPM-Solver multistep, UniP, DEIS, LMS, iPNDM and learned methods are all of this form.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.schedules import expand
from diffjax.solvers.base import Solver
from diffjax.solvers.exponential import Expansion, Steps, weights
from diffjax.typing import Array

__all__ = ["Weights", "combine", "linear_multistep", "orders", "polynomial_weights"]


class Weights(NamedTuple):
    """Weights of every step of a grid; a weight is a scalar, or one per sample.

    Attributes:
        state: ``a_i``, shape ``(steps, ...)``.
        values: ``b_ij`` from the newest prediction on, each of shape ``(steps, ...)``; those of
            predictions before the first are zero.
    """

    state: Array
    values: tuple[Array, ...]


def linear_multistep(
    expansion: Expansion, terms: int, make_weights: Callable[[Array], Weights]
) -> Solver:
    """The solver of a rule for the weights. One network call a step.

    Args:
        expansion: What ``m`` is.
        terms: Predictions in a step, ``k``; the last ``k - 1`` are its memory.
        make_weights: ``ts -> Weights`` with ``k`` values.
    """

    def init(x: Array) -> tuple[Array, ...]:
        return (jnp.zeros_like(x),) * (terms - 1)

    def step(predict, x, memory, span, key):
        del key
        value = expansion.quantity(predict(x, span.t)).astype(x.dtype)
        values = (value, *memory)
        return combine(span.plan, x, values), values[:-1]

    return Solver(init, step, evaluations=1, plan=make_weights)


def combine(weighted: Weights, x: Array, values: tuple[Array, ...]) -> Array:
    """``a x + sum_j b_j m_j``."""
    total = expand(weighted.state, x) * x
    for weight, value in zip(weighted.values, values, strict=True):
        total = total + expand(weight, x) * value
    return total


def orders(steps: int, order: int, lower_order_final: bool) -> np.ndarray:
    """Order of every step: it rises from 1 at the start and, if asked, falls to 1 at the end."""
    index = np.arange(steps)
    rising = np.minimum(order, index + 1)
    return np.minimum(rising, steps - index) if lower_order_final else rising


def polynomial_weights(
    steps: Steps,
    expansion: Expansion,
    used: np.ndarray,
    terms: int,
    moments: Callable[[int, Array], list[Array]],
    *,
    ahead: bool = False,
) -> Weights:
    """Weights of exponential steps with the polynomial through the last predictions.

    Args:
        steps: The steps of the grid.
        expansion: What is expanded.
        used: How many of the last predictions each step uses, ``(steps,)``, known when tracing.
        terms: The largest such number.
        moments: ``(nodes, h)`` to as many moments over ``q_1``.
        ahead: Whether the prediction at the end of the step is known too, as to a corrector. Its
            weight is then the last of all.
    """
    state, first = expansion.linear(steps.over)
    values = [jnp.zeros_like(first) for _ in range(terms + ahead)]
    for count in map(int, np.unique(used)):
        rows = np.flatnonzero(used == count)
        h = steps.h[rows]
        nodes = [jnp.zeros_like(h)]
        nodes += [(steps.lam[rows - j] - steps.lam[rows]) / h for j in range(1, count)]
        places = list(range(count))
        if ahead:
            nodes, places = [*nodes, jnp.ones_like(h)], [*places, terms]
        found = weights(nodes, moments(len(nodes), h))
        for place, weight in zip(places, found, strict=True):
            values[place] = values[place].at[rows].set(first[rows] * weight)
    return Weights(state, tuple(values))
