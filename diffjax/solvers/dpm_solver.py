r"""DPM-Solver and DPM-Solver++: exponential integrators in half log SNR.

In ``lambda`` the linear part of the probability-flow ODE integrates exactly; what is left is an
exponentially weighted integral of the prediction ``m``, either ``x0`` (DPM-Solver++, stable under
guidance) or ``eps`` (DPM-Solver). A second-order step is the first-order one (DDIM) with ``m``
replaced by its value half a step ahead, extrapolated from one more evaluation.

Lu et al. 2022 (arXiv 2206.00927) and Lu et al. 2022 (arXiv 2211.01095).
"""

from typing import NamedTuple

import jax.numpy as jnp

from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers.base import Solver, Span, one_step
from diffjax.solvers.transition import Transition, transition
from diffjax.typing import Array

__all__ = ["multistep", "singlestep"]


def singlestep(schedule: Schedule, expansion: str = "x0", r1: float = 0.5) -> Solver:
    r"""Second-order singlestep DPM-Solver (2S).

    With ``u`` the first-order step to ``lambda_t + r1 h`` and ``m_1`` the prediction there,

    .. math:: x_s = C x_t + A q_1 \Big[ m_t + \frac{m_1 - m_t}{2 r_1} \Big]

    Order 2, two network calls a step. DPM-Solver++ algorithm 1 (``x0``), DPM-Solver algorithm 1
    (``eps``). A step to no noise at all has no middle in ``lambda``: end the grid at ``t_min``.

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` for DPM-Solver++, ``'eps'`` for DPM-Solver.
        r1: Place of the second evaluation, in (0, 1).
    """
    quantity, along = _expansion(expansion)

    def step(predict, x, span, key):
        del key
        lam, lam_next = (half_log_snr(schedule, t) for t in (span.t, span.t_next))
        middle = schedule.time(lam + r1 * (lam_next - lam))
        first = quantity(predict(x, span.t))
        u = along(transition(schedule, span._replace(t_next=middle), x), x, first)
        second = quantity(predict(u, middle))
        return along(transition(schedule, span, x), x, first + (second - first) / (2 * r1))

    return one_step(step, evaluations=2)


class History(NamedTuple):
    """Memory of a two-step method.

    Attributes:
        value: Predicted quantity of the previous step.
        lam: Half log SNR it was predicted at, shape ``(batch,)``.
    """

    value: Array
    lam: Array


def multistep(
    schedule: Schedule, expansion: str = "x0", *, lower_order_final: bool = True
) -> Solver:
    r"""Second-order multistep DPM-Solver (2M): DPM-Solver++(2M) by default.

    .. math:: x_s = C x_t + A q_1 \Big[ m_t + \frac{m_t - m_{-1}}{2 r_0} \Big], \quad
              r_0 = \frac{\lambda_t - \lambda_{-1}}{\lambda_s - \lambda_t}

    Order 2, one network call a step; the first step is of first order. DPM-Solver++ algorithm 2.

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` for DPM-Solver++, ``'eps'`` for DPM-Solver.
        lower_order_final: Take the last step with first order: steadier with few steps, and needed
            when the grid ends at no noise at all.
    """
    quantity, along = _expansion(expansion)

    def init(x: Array) -> History:
        return History(jnp.zeros_like(x), jnp.zeros(x.shape[:1], x.dtype))

    def step(predict, x, history: History, span: Span, key):
        del key
        lam, lam_next = (half_log_snr(schedule, t) for t in (span.t, span.t_next))
        second_order = span.index > 0
        if lower_order_final:
            second_order &= span.remaining > 1
        # Half of 1 / r_0; zero makes the step a first-order one, whatever the history holds.
        weight = jnp.where(
            second_order,
            0.5 * (lam_next - lam) / jnp.where(second_order, lam - history.lam, 1.0),
            0.0,
        )
        value = quantity(predict(x, span.t))
        ahead = value + expand(weight, x) * (value - history.value)
        x_next = along(transition(schedule, span, x), x, ahead)
        lam = jnp.broadcast_to(lam, history.lam.shape).astype(history.lam.dtype)
        return x_next, History(value.astype(history.value.dtype), lam)

    return Solver(init, step, evaluations=1)


def _expansion(name: str):
    """The predicted quantity that is expanded, and the exact step along it."""
    if name == "x0":
        return (lambda prediction: prediction.x0), Transition.along_x0
    if name == "eps":
        return (lambda prediction: prediction.eps), Transition.along_eps
    raise ValueError(f"dpm_solver: unknown expansion {name!r}: choose 'x0' or 'eps'")
