r"""Explicit Runge-Kutta methods for the probability-flow ODE in half log SNR, of fixed steps.

In the coordinates ``y = x / alpha`` with the noise level ``s = sigma / alpha`` the ODE is

.. math:: \frac{dy}{d\log s} = s\, \epsilon(\alpha y, t).

For steps chosen by the error, see :func:`~diffjax.solvers.solve_ode`.
"""

from collections.abc import Sequence

import numpy as np

from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers.base import Solver, one_step

__all__ = ["dormand_prince", "runge_kutta"]

# Dormand & Prince 1980, table 2: the fifth-order solution needs six of its seven stages.
_DORMAND_PRINCE = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_DORMAND_PRINCE_WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)


def dormand_prince(schedule: Schedule) -> Solver:
    """The fifth-order method of Dormand & Prince, the solution of ``RK45``. Six calls a step.

    Args:
        schedule: The forward process.
    """
    return runge_kutta(schedule, _DORMAND_PRINCE, _DORMAND_PRINCE_WEIGHTS)


def runge_kutta(
    schedule: Schedule, stages: Sequence[Sequence[float]], weights: Sequence[float]
) -> Solver:
    r"""An explicit Runge-Kutta method, given by its tableau.

    .. math:: k_i = f\big(u_t + c_i h,\ y_t + h \sum_{j<i} a_{ij} k_j\big), \quad
              y_s = y_t + h \sum_i b_i k_i, \quad u = \log s, \quad c_i = \sum_j a_{ij}

    As many network calls a step as stages. A step to no noise at all has no length in ``log s``:
    end the grid at ``t_min``.

    Args:
        schedule: The forward process.
        stages: Rows ``a_i``, row ``i`` with ``i`` entries.
        weights: ``b``.

    Raises:
        ValueError: The rows and weights are no explicit tableau.
    """
    lengths = [len(row) for row in stages]
    if lengths != list(range(len(weights))) or not np.isclose(sum(weights), 1.0):
        raise ValueError(
            f"runge_kutta: row i of the tableau needs i entries and the weights a sum of 1, got "
            f"rows of {lengths} and {len(weights)} weights of sum {sum(weights):g}"
        )

    def step(predict, x, span, key):
        del key
        start, end = (-half_log_snr(schedule, t) for t in (span.t, span.t_next))
        length = expand(end - start, x)
        y, slopes = x / expand(schedule.alpha(span.t), x), []
        for row in stages:
            t = span.t if not row else schedule.time(-(start + sum(row) * (end - start)))
            place = y + length * _combined(row, slopes) if row else y
            scales = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
            eps = predict((scales[0] * place).astype(x.dtype), t).eps
            slopes.append(scales[1] / scales[0] * eps)
        return expand(schedule.alpha(span.t_next), x) * (y + length * _combined(weights, slopes))

    return one_step(step, evaluations=len(weights))


def _combined(weights, slopes):
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)
