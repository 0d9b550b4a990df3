"""Multistep DPM-Solver: order by order more history, one network call a step."""

import jax.numpy as jnp

from diffjax.schedules import Schedule
from diffjax.solvers import exponential
from diffjax.solvers.base import Solver
from diffjax.solvers.linear import Weights, linear_multistep, orders, polynomial_weights
from diffjax.typing import Array

__all__ = ["SOLVER_TYPES", "multistep"]

SOLVER_TYPES = ("dpmsolver", "taylor")


def multistep(
    schedule: Schedule,
    expansion: str = "x0",
    *,
    order: int = 2,
    solver_type: str = "dpmsolver",
    lower_order_final: bool = True,
    halved_curvature: bool = True,
) -> Solver:
    r"""Multistep DPM-Solver of order 1 to 4: DPM-Solver++(2M) by default.

    .. math:: x_s = C x_t + A q_1 \Big[ m_t + \frac{m_t - m_{-1}}{2 r_0} \Big], \quad
              r_0 = \frac{\lambda_t - \lambda_{-1}}{\lambda_s - \lambda_t}

    at order 2, the polynomial through the last ``order`` predictions in general; order 1 is DDIM.
    One network call a step; the first steps are of lower order. Lu et al. 2022 (arXiv 2206.00927);
    DPM-Solver++ (arXiv 2211.01095), algorithm 2.

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` for DPM-Solver++, ``'eps'`` for DPM-Solver.
        order: 1 to 4. The published methods end at 3.
        solver_type: Of second-order steps. ``'dpmsolver'`` gives the slope the weight ``q_1 / 2``,
            ``'taylor'`` its exact one.
        lower_order_final: Let the order fall to 1 over the last steps: steadier with few steps, and
            needed when the grid ends at no noise at all.
        halved_curvature: Of third-order steps: take half the second derivative, as the authors'
            code does. That is asymptotically of second order, but better at 10 to 20 calls.

    Raises:
        ValueError: An unknown expansion, type or order.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"multistep: order must be 1, 2, 3 or 4, got {order}")
    if solver_type not in SOLVER_TYPES:
        raise ValueError(
            f"multistep: unknown solver_type {solver_type!r}: choose 'dpmsolver' or 'taylor'"
        )
    expanded = exponential.expansion(expansion)

    def moments(used: int, h: Array) -> list[Array]:
        exact = exponential.moments(used, h, expanded.sign)
        if used == 2 and solver_type == "dpmsolver":
            exact[1] = jnp.full_like(h, 0.5)
        if used == 3 and halved_curvature:
            exact[2] = exact[2] / 2
        return exact

    def make_weights(ts: Array) -> Weights:
        used = orders(ts.shape[0] - 1, order, lower_order_final)
        steps = exponential.plan_steps(schedule, ts)
        return polynomial_weights(steps, expanded, used, order, moments)

    return linear_multistep(expanded, order, make_weights)
