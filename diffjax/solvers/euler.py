"""Euler's method for the probability-flow ODE in the schedule's own time."""

from diffjax.prediction import to_velocity
from diffjax.schedules import Schedule, expand
from diffjax.solvers.base import Solver, one_step

__all__ = ["euler"]


def euler(schedule: Schedule) -> Solver:
    r"""Explicit Euler in ``t``, the usual solver of flow matching.

    .. math:: x_s = x_t + (s - t)\, u_t, \quad u = \dot\alpha x_0 + \dot\sigma\epsilon

    Order 1. On flow matching and EDM's schedule it is :func:`~diffjax.solvers.ddim`; elsewhere it
    also discretises the linear part, which DDIM integrates exactly, and DDIM is the better choice.
    One network call a step. Song et al. 2021 (probability flow); Lipman et al. 2023.

    Args:
        schedule: The forward process.
    """

    def step(predict, x, span, key):
        del key
        velocity = to_velocity(schedule, span.t, predict(x, span.t))
        return x + expand(span.t_next - span.t, x) * velocity

    return one_step(step)
