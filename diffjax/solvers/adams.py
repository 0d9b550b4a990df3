r"""Adams-Bashforth methods on ``eps``: DEIS, LMS, iPNDM and PNDM.

With ``y = x / alpha`` and ``rho = sigma / alpha`` the probability-flow ODE is ``dy/drho = eps``, on
any schedule. A step from ``t`` to ``s`` integrates the polynomial through the last predictions,

.. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t + \alpha_s \sum_j \epsilon_{-j}
          \int_{\rho_t}^{\rho_s} \ell_j(c(\rho))\, d\rho

and the methods differ in the variable ``c`` in which it is a polynomial.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict
from diffjax.schedules import Schedule
from diffjax.solvers import exponential
from diffjax.solvers.base import Solution, Solver, solve
from diffjax.solvers.exponential import EPS, Steps
from diffjax.solvers.linear import Weights, linear_multistep, orders, polynomial_weights
from diffjax.solvers.transition import transition
from diffjax.typing import Array

__all__ = ["VARIABLES", "deis", "ipndm", "lms", "pndm", "pseudo_runge_kutta"]

VARIABLES: dict[str, Callable[[Schedule, Array], Array]] = {
    "t": lambda schedule, lam: schedule.time(lam.reshape(-1)).reshape(lam.shape),
    "rho": lambda schedule, lam: jnp.exp(-lam),
    "log_rho": lambda schedule, lam: -lam,
}

# Nodes that integrate a cubic in rho to rounding over the longest step that matters: beyond 30 in
# lambda, as on a step to no noise at all, there is nothing left of rho.
_NODES, _REACH = 32, 30.0


def deis(
    schedule: Schedule, *, order: int = 3, variable: str = "t", lower_order_final: bool = True
) -> Solver:
    r"""DEIS: exact integrals of the polynomial through the last ``order`` predictions.

    ``tAB-DEIS`` and ``rhoAB-DEIS`` of Zhang & Chen 2023 (arXiv 2204.13902), section 3, and the same
    in ``log rho``, which is DPM-Solver with its exact weights. The integrals are Gauss-Legendre
    sums over ``log rho``. Order 1 is DDIM; the first steps are of lower order. One network call a
    step.

    Args:
        schedule: The forward process.
        order: 1 to 4.
        variable: ``'t'``, ``'rho'`` (LMS) or ``'log_rho'``.
        lower_order_final: Let the order fall to 1 over the last steps.

    Raises:
        ValueError: An unknown variable or order.
    """
    _check_order("deis", order)
    if variable not in VARIABLES:
        raise ValueError(f"deis: unknown variable {variable!r}: choose 't', 'rho' or 'log_rho'")

    def make_weights(ts: Array) -> Weights:
        steps = exponential.plan_steps(schedule, ts)
        used = orders(ts.shape[0] - 1, order, lower_order_final)
        values, moments = _moments(steps, order, lambda lam: VARIABLES[variable](schedule, lam))
        return polynomial_weights(
            steps._replace(lam=values),
            EPS,
            used,
            order,
            lambda count, h: [moment[used == count] for moment in moments[:count]],
        )

    return linear_multistep(EPS, order, make_weights)


def lms(schedule: Schedule, *, order: int = 4) -> Solver:
    """k-diffusion's linear multistep method: DEIS in ``rho``, of full order to the last step.

    Args:
        schedule: The forward process.
        order: 1 to 4.

    Raises:
        ValueError: An order that is not offered.
    """
    _check_order("lms", order)
    return deis(schedule, order=order, variable="rho", lower_order_final=False)


def ipndm(schedule: Schedule, *, order: int = 4) -> Solver:
    r"""iPNDM: DDIM's step with the Adams-Bashforth mean of the last predictions.

    .. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t + (\sigma_s - \frac{\alpha_s}{\alpha_t}\sigma_t)
              \tfrac{1}{24} (55\epsilon - 59\epsilon_{-1} + 37\epsilon_{-2} - 9\epsilon_{-3})

    at order 4. The weights are those of equal steps whatever the grid, and the mean ignores that
    ``rho`` moves unevenly within a step, so the method converges with second order only, from
    ``order=2`` on. The first steps are of lower order. One network call a step. Zhang & Chen 2023
    (arXiv 2204.13902), appendix H.

    Args:
        schedule: The forward process.
        order: 1 to 4.

    Raises:
        ValueError: An order that is not offered.
    """
    _check_order("ipndm", order)

    def make_weights(ts: Array) -> Weights:
        return _equal_steps(schedule, ts, orders(ts.shape[0] - 1, order, False), order)

    return linear_multistep(EPS, order, make_weights)


def pseudo_runge_kutta(schedule: Schedule) -> Solver:
    r"""PNDM's start: the classical Runge-Kutta mean of four predictions, and DDIM's step with it.

    .. math:: \bar\epsilon = \tfrac16 (\epsilon_1 + 2\epsilon_2 + 2\epsilon_3 + \epsilon_4)

    of which the middle two are taken halfway in ``t``. Second order, for the reason given at
    :func:`ipndm`. Four network calls a step, the last at ``t_next``: end the grid at ``t_min``. The
    memory is the first prediction of the last three steps, latest first. Liu et al. 2022 (arXiv
    2202.09778), eq. (13).

    Args:
        schedule: The forward process.
    """

    def step(predict, x, memory, span, key):
        del key
        middle = (span.t + span.t_next) / 2
        half = transition(schedule, span._replace(t_next=middle), x)
        whole = transition(schedule, span, x)
        first = predict(x, span.t).eps
        second = predict(half.along_eps(x, first), middle).eps
        third = predict(half.along_eps(x, second), middle).eps
        fourth = predict(whole.along_eps(x, third), span.t_next).eps
        mean = (first + 2 * second + 2 * third + fourth) / 6
        return whole.along_eps(x, mean), (first.astype(x.dtype), *memory[:-1])

    return Solver(lambda x: (jnp.zeros_like(x),) * 3, step, evaluations=4)


def pndm(predict: Predict, schedule: Schedule, x: Array, ts: Array) -> Solution:
    """PNDM: three pseudo-Runge-Kutta steps, then fourth-order iPNDM on their predictions.

    ``steps + 9`` calls of ``predict``. A run of two solvers, not one, as their costs differ. Liu et
    al. 2022 (arXiv 2202.09778), algorithm 2 (F-PNDM).

    Args:
        predict: The network seen through its schedule.
        schedule: The forward process.
        x: Start, ``(batch, ...)``, at ``ts[0]``.
        ts: Decreasing times, ``(steps + 1,)`` or ``(steps + 1, batch)``.

    Raises:
        ValueError: Fewer than 4 steps.
    """
    steps = jnp.shape(ts)[0] - 1
    if steps < 4:
        raise ValueError(f"pndm: needs 4 steps or more, of which 3 are its start, got {steps}")
    start = solve(pseudo_runge_kutta(schedule), predict, x, ts[:4])
    full = np.full(steps - 3, 4)
    rest = linear_multistep(EPS, 4, lambda ts: _equal_steps(schedule, ts, full, 4))
    end = solve(rest._replace(init=lambda x: start.memory), predict, start.x, ts[3:])
    return end._replace(nfe=start.nfe + end.nfe)


def _check_order(name: str, order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"{name}: order must be 1, 2, 3 or 4, got {order}")


def _moments(
    steps: Steps, count: int, variable: Callable[[Array], Array]
) -> tuple[Array, list[Array]]:
    """The variable on the grid, and means over each step, even in ``rho``, of its powers.

    Powers of its place in the step, which is 0 at the start and 1 at the end.
    """
    points, mass = np.polynomial.legendre.leggauss(_NODES)
    values = variable(steps.lam)
    reach = jnp.minimum(steps.h, _REACH)
    points, mass = (
        jnp.asarray(v, reach.dtype).reshape((-1,) + (1,) * reach.ndim)
        for v in ((points + 1) / 2, mass / 2)
    )
    density = mass * jnp.exp(-points * reach) / exponential.phis(1, -reach)[0]
    places = (variable(steps.lam[:-1] + points * reach) - values[:-1]) / (values[1:] - values[:-1])
    powers = [(density * places**n).sum(0) for n in range(1, count)]
    return values, [jnp.ones_like(reach), *powers]


def _equal_steps(schedule: Schedule, ts: Array, used: np.ndarray, order: int) -> Weights:
    """DDIM's weights, shared out as Adams and Bashforth do over ``used`` predictions a step."""
    state, first = EPS.linear(exponential.plan_steps(schedule, ts).over)
    shares = np.zeros((order + 1, order))
    for count in range(1, order + 1):
        nodes, moments = -np.arange(count), 1 / np.arange(1.0, count + 1)
        shares[count, :count] = exponential.weights(nodes, moments)
    shares = jnp.asarray(shares[used], first.dtype)
    values = (share.reshape((-1,) + (1,) * (first.ndim - 1)) * first for share in shares.T)
    return Weights(state, tuple(values))
