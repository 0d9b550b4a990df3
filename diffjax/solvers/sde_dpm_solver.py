"""SDE-DPM-Solver(++): exponential integrators of the reverse SDE, and Brownian paths for them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.random import normal
from diffjax.schedules import Schedule, expand, half_log_snr
from diffjax.solvers import exponential
from diffjax.solvers.base import Solver
from diffjax.solvers.linear import Weights, combine, orders, polynomial_weights
from diffjax.solvers.multistep import SOLVER_TYPES
from diffjax.solvers.transition import Transition
from diffjax.typing import Array, Key

__all__ = ["Path", "brownian_path", "sde_multistep"]

Path = Callable[[Array, Array], Array]


class Plan(NamedTuple):
    """Weights of a step and of its noise.

    Attributes:
        weights: Of the state and the predictions.
        noise: Of the noise: of a standard normal, or of the path's increment.
        clock: Where the path is read, at the start and at the end of the step.
    """

    weights: Weights
    noise: Array
    clock: tuple[Array, Array]


def sde_multistep(
    schedule: Schedule,
    expansion: str = "x0",
    *,
    order: int = 2,
    solver_type: str = "dpmsolver",
    lower_order_final: bool = True,
    path: Path | None = None,
) -> Solver:
    r"""Multistep SDE-DPM-Solver of order 1 or 2: SDE-DPM-Solver++(2M) by default.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-h} x_t + \alpha_s (1 - e^{-2h})
              \Big[ x_0 + \frac{x_0 - x_{0,-1}}{2 r_0} \Big] + \sigma_s \sqrt{1 - e^{-2h}}\, z

    and, expanding ``eps``, ``(alpha_s/alpha_t) x_t - 2 sigma_s (e^h - 1) [...] + sigma_s
    sqrt(e^{2h} - 1) z``. With exact ``x0`` of a point mass the first is exact in distribution; of
    first order it is ancestral sampling with the small variance. One network call a step. Lu et al.
    2022 (arXiv 2211.01095), section 5.

    Args:
        schedule: The forward process.
        expansion: ``'x0'`` for SDE-DPM-Solver++, ``'eps'`` for SDE-DPM-Solver.
        order: 1 or 2.
        solver_type: ``'dpmsolver'`` gives the slope half the weight of the value (the midpoint
            rule), ``'taylor'`` its exact one.
        lower_order_final: Take the last step with first order.
        path: Where the noise comes from instead of the step's key; see :func:`brownian_path`.

    Raises:
        ValueError: An unknown expansion, type or order.
    """
    if order not in (1, 2):
        raise ValueError(f"sde_multistep: order must be 1 or 2, got {order}")
    if solver_type not in SOLVER_TYPES:
        raise ValueError(
            f"sde_multistep: unknown solver_type {solver_type!r}: choose 'dpmsolver' or 'taylor'"
        )
    expanded = exponential.expansion(expansion)
    # The reverse SDE doubles what the prediction does: in x0's form it is the ODE's step with
    # twice the length, in eps's form twice its weight.
    doubled = _DoubledX0() if expansion == "x0" else _DoubledEps()

    def moments(used: int, h: Array) -> list[Array]:
        exact = exponential.moments(used, doubled.length * h, expanded.sign)
        if used == 2 and solver_type == "dpmsolver":
            exact[1] = jnp.full_like(h, 0.5)
        return exact

    def plan(ts: Array) -> Plan:
        steps = exponential.plan_steps(schedule, ts)
        used = orders(ts.shape[0] - 1, order, lower_order_final)
        weights = polynomial_weights(steps, doubled, used, order, moments)
        scale = doubled.noise_scale(steps.over) if path is not None else doubled.std(steps.over)
        clock = clocks(schedule, expansion, ts)
        return Plan(weights, scale, (clock[:-1], clock[1:]))

    def init(x: Array) -> tuple[Array, ...]:
        return (jnp.zeros_like(x),) * (order - 1)

    def step(predict, x, memory, span, key):
        value = expanded.quantity(predict(x, span.t)).astype(x.dtype)
        values = (value, *memory)
        z = path(*span.plan.clock) if path is not None else normal(key, x.shape, x.dtype)
        return combine(span.plan.weights, x, values) + expand(span.plan.noise, x) * z, values[:-1]

    return Solver(init, step, evaluations=1, plan=plan)


class _DoubledX0:
    length = 2

    def linear(self, over: Transition) -> tuple[Array, Array]:
        ratio = over.ratio
        return over.sigma_next / over.sigma * ratio, over.alpha_next * (1 - ratio**2)

    def std(self, over: Transition) -> Array:
        return jnp.sqrt(over.small_variance)

    def noise_scale(self, over: Transition) -> Array:
        return over.sigma_next**2 / over.alpha_next


class _DoubledEps:
    length = 1

    def linear(self, over: Transition) -> tuple[Array, Array]:
        state, first = exponential.EPS.linear(over)
        return state, 2 * first

    def std(self, over: Transition) -> Array:
        ahead = (over.alpha_next / over.alpha * over.sigma) ** 2
        return jnp.sqrt(jnp.maximum(ahead - over.sigma_next**2, 0.0))

    def noise_scale(self, over: Transition) -> Array:
        return over.alpha_next


def clocks(schedule: Schedule, expansion: str, ts: Array) -> Array:
    r"""Time of the Brownian motion that drives the SDE in each form; it grows towards the data.

    The noise of a step is a weighted integral of white noise, which is a Brownian motion in the
    time ``\alpha^2/\sigma^2`` (``x0``) or ``-\sigma^2/\alpha^2`` (``eps``).
    """
    sign = 2 if expansion == "x0" else -2
    return jnp.sign(sign) * jnp.exp(sign * jax.vmap(lambda t: half_log_snr(schedule, t))(ts))


def brownian_path(
    schedule: Schedule,
    key: Key,
    shape: tuple[int, ...],
    *,
    expansion: str = "x0",
    t_start: float | None = None,
    t_end: float | None = None,
    tolerance: float = 1e-6,
) -> Path:
    """One Brownian path for all grids: a refined grid meets the same noise.

    With it an SDE solver converges to one solution as steps grow smaller (strong convergence),
    where noise drawn from the step's key would be new for every grid.

    Args:
        schedule: The forward process.
        key: Of the path; one key, or one per sample.
        shape: Of the state, ``(batch, ...)``.
        expansion: That of the solver.
        t_start: Largest time it is read at; the schedule's ``t_max`` if not given.
        t_end: Smallest such time, not 0; the schedule's ``t_min`` if not given.
        tolerance: Finest resolution, of the shortest clock time there is.

    Returns:
        ``(clock, clock_next) -> increment`` of ``shape``, for ``sde_multistep(..., path=...)``.
    """
    import diffrax  # as slow to import as JAX, and needed here only

    ends = jnp.asarray(
        [schedule.t_max if t_start is None else t_start, schedule.t_min if t_end is None else t_end]
    )
    first, last = clocks(schedule, expansion, ends)
    keys = key if key.ndim else jax.random.split(key, shape[0])

    def single(key, start, end):
        tree = diffrax.VirtualBrownianTree(
            0.0,
            1.0,
            tol=tolerance,
            shape=jax.ShapeDtypeStruct(shape[1:], jnp.result_type(float)),
            key=key,
        )
        # Brownian scaling brings the whole clock to [0, 1].
        total = last - first
        place = [jnp.clip((at - first) / total, 0.0, 1.0) for at in (start, end)]
        return jnp.sqrt(total) * tree.evaluate(*place)

    def increment(start: Array, end: Array) -> Array:
        start, end = (jnp.broadcast_to(at, shape[:1]) for at in (start, end))
        return jax.vmap(single)(keys, start, end)

    return increment
