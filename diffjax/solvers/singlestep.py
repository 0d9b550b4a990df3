"""Singlestep DPM-Solver: stages inside a step instead of history."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.schedules import Schedule
from diffjax.solvers import exponential
from diffjax.solvers.base import Solver
from diffjax.solvers.linear import Weights, combine
from diffjax.solvers.multistep import SOLVER_TYPES
from diffjax.typing import Array

__all__ = ["Stages", "plan_stages", "singlestep"]

DEFAULT_PLACES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


class Stages(NamedTuple):
    """A step's stages: where the network is called after the first call, and what is added up.

    Attributes:
        times: Time of each further call, ``order - 1`` of them.
        weights: Weights of the state at each of those times, and at the end of the step, all
            from the state at the start and the predictions so far.
    """

    times: tuple[Array, ...]
    weights: tuple[Weights, ...]


def singlestep(
    schedule: Schedule,
    expansion: str = "x0",
    *,
    order: int = 2,
    solver_type: str = "dpmsolver",
    r1: Array | None = None,
    r2: Array | None = None,
) -> Solver:
    r"""Singlestep DPM-Solver of order 1, 2 or 3: DPM-Solver++(2S) by default.

    At order 2, with ``u`` the first-order step to ``lambda_t + r1 h`` and ``m_1`` the prediction
    there,

    .. math:: x_s = C x_t + A q_1 \Big[ m_t + \frac{m_1 - m_t}{2 r_1} \Big]

    at order 3 a further prediction at ``r2``. As many network calls a step as its order. Lu et al.
    2022 (arXiv 2206.00927), algorithms 1 and 2; DPM-Solver++ (arXiv 2211.01095), algorithm 1. A
    step to no noise at all has no middle in ``lambda``: end the grid at ``t_min``.

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` for DPM-Solver++, ``'eps'`` for DPM-Solver.
        order: 1, 2 or 3.
        solver_type: ``'dpmsolver'`` or ``'taylor'``: whether the last stage weighs differences as
            the paper's algorithms do, or takes the whole polynomial.
        r1: Place of the second call in the step, in (0, 1): a number, or one for each step; 1/2 at
            order 2 and 1/3 at order 3 if not given.
        r2: Place of the third call, beyond ``r1``; 2/3 if not given.

    Raises:
        ValueError: An unknown expansion, type or order, or places out of order.
    """
    if order not in DEFAULT_PLACES:
        raise ValueError(f"singlestep: order must be 1, 2 or 3, got {order}")
    if solver_type not in SOLVER_TYPES:
        raise ValueError(
            f"singlestep: unknown solver_type {solver_type!r}: choose 'dpmsolver' or 'taylor'"
        )
    expanded = exponential.expansion(expansion)
    places = [
        default if given is None else given
        for default, given in zip(DEFAULT_PLACES[order], (r1, r2), strict=False)
    ]
    if all(isinstance(place, int | float) for place in places):
        ends = [0.0, *places, 1.0]
        if any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"singlestep: needs 0 < r1 < r2 < 1, got {places}")

    def plan(ts: Array) -> Stages:
        return plan_stages(schedule, expanded, ts, places, solver_type)

    def step(predict, x, memory, span, key):
        del key
        values = (expanded.quantity(predict(x, span.t)),)
        for t, weighted in zip(span.plan.times, span.plan.weights[:-1], strict=True):
            values += (expanded.quantity(predict(combine(weighted, x, values), t)),)
        return combine(span.plan.weights[-1], x, values), memory

    return Solver(lambda x: (), step, evaluations=order, plan=plan)


def plan_stages(
    schedule: Schedule,
    expansion: exponential.Expansion,
    ts: Array,
    places: list[Array],
    solver_type: str = "dpmsolver",
) -> Stages:
    """The stages of every step of a grid, with calls at ``places`` after the first."""
    steps = exponential.plan_steps(schedule, ts)
    h, start = steps.h, steps.lam[:-1]
    places = [jnp.reshape(r, jnp.shape(r) + (1,) * (h.ndim - jnp.ndim(r))) for r in places]
    times = [jax.vmap(schedule.time)(start + r * h) for r in places]
    nodes = [jnp.zeros_like(h), *(jnp.broadcast_to(r, h.shape) for r in places)]
    stages = []
    for count, t in enumerate(times, start=1):
        # Each stage takes the whole polynomial through what it has, over its own part of the step.
        over = steps.over._replace(
            alpha_next=jax.vmap(schedule.alpha)(t), sigma_next=jax.vmap(schedule.sigma)(t)
        )
        r = places[count - 1]
        exact = exponential.moments(count, r * h, expansion.sign)
        stages.append(_weigh(expansion, over, [node / r for node in nodes[:count]], exact))
    exact = exponential.moments(len(nodes), h, expansion.sign)
    if solver_type == "dpmsolver" and places:
        stages.append(_paper_end(expansion, steps.over, nodes, exact))
    else:
        stages.append(_weigh(expansion, steps.over, nodes, exact))
    return Stages(tuple(times), tuple(stages))


def _weigh(expansion, over, nodes, moments) -> Weights:
    state, first = expansion.linear(over)
    return Weights(state, tuple(first * w for w in exponential.weights(nodes, moments)))


def _paper_end(expansion, over, nodes, moments) -> Weights:
    """The end of the papers' algorithms: a slope from the first and the last call alone."""
    slope = 0.5 if len(nodes) == 2 else moments[1]
    moments = [moments[0], jnp.broadcast_to(slope, moments[0].shape)]
    ends = _weigh(expansion, over, [nodes[0], nodes[-1]], moments)
    between = (jnp.zeros_like(nodes[0]),) * (len(nodes) - 2)
    return Weights(ends.state, (ends.values[0], *between, ends.values[1]))
