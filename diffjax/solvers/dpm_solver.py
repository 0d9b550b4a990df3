"""DPM-Solver under its published names: one call that reproduces the authors' code."""

import functools

import jax
import numpy as np

from diffjax.prediction import Predict
from diffjax.schedules import Schedule, half_log_snr
from diffjax.solvers import timesteps
from diffjax.solvers.adaptive import solve_adaptive
from diffjax.solvers.base import Solution, denoise, solve
from diffjax.solvers.multistep import multistep
from diffjax.solvers.sde_dpm_solver import sde_multistep
from diffjax.solvers.singlestep import singlestep
from diffjax.typing import Array, Key

__all__ = ["ALGORITHMS", "METHODS", "mixed_orders", "sample"]

ALGORITHMS = {"dpmsolver": "eps", "dpmsolver++": "x0", "sde-dpmsolver++": "x0"}
METHODS = ("multistep", "singlestep", "singlestep_fixed", "adaptive")

# With this many steps and more the authors' code ignores lower_order_final.
MANY_STEPS = 10


def sample(
    predict: Predict,
    schedule: Schedule,
    x: Array,
    *,
    steps: int,
    order: int = 2,
    method: str = "multistep",
    algorithm: str = "dpmsolver",
    skip: str = "time_uniform",
    solver_type: str = "dpmsolver",
    lower_order_final: bool = True,
    denoise_to_zero: bool = False,
    t_start: Array | None = None,
    t_end: Array | None = None,
    atol: float = 0.0078,
    rtol: float = 0.05,
    key: Key | None = None,
) -> Solution:
    """Samples with DPM-Solver, DPM-Solver++ or SDE-DPM-Solver++.

    Lu et al. 2022 (arXiv 2206.00927, arXiv 2211.01095). Costs ``steps`` calls of ``predict``
    (``singlestep_fixed``: the largest multiple of ``order`` within that; ``adaptive``: as many as
    the tolerances take, refused steps counted), and one more with ``denoise_to_zero``.

    Args:
        predict: The network seen through its schedule; thresholding belongs into it.
        schedule: The forward process.
        x: Start, ``(batch, ...)``, at ``t_start``.
        steps: Network calls; not used by ``adaptive``.
        order: 1, 2 or 3.
        method: ``'multistep'``; ``'singlestep'``, steps of mixed orders that make exactly ``steps``
            calls; ``'singlestep_fixed'``, of one order; ``'adaptive'``.
        algorithm: ``'dpmsolver'``, ``'dpmsolver++'`` or ``'sde-dpmsolver++'``.
        skip: Grid: ``'time_uniform'``, ``'logSNR'`` or ``'time_quadratic'``.
        solver_type: ``'dpmsolver'`` or ``'taylor'``.
        lower_order_final: Of ``multistep``: let the order fall over the last steps. As in the
            authors' code, with fewer than 10 steps only; :func:`~diffjax.solvers.multistep` does it
            for any number.
        denoise_to_zero: End with the step to the data.
        t_start: Time of ``x``, ``()`` or ``(batch,)``; the schedule's ``t_max`` if not given.
        t_end: Where to stop, likewise; the schedule's ``t_min`` if not given.
        atol: Absolute tolerance of ``adaptive``.
        rtol: Relative tolerance of ``adaptive``.
        key: For ``sde-dpmsolver++``: one key, or one per sample.

    Returns:
        The :class:`Solution`. Of ``adaptive``, ``nfe`` is an array and the worst sample of the
        batch sets the steps, as published; :func:`~diffjax.solvers.solve_adaptive` can do it per
        sample.

    Raises:
        ValueError: An unknown name, an order that is not offered, fewer steps than the order,
            times out of order, or a missing key.
    """
    _check(method, algorithm, order, steps, key)
    expansion = ALGORITHMS[algorithm]
    if method == "adaptive":
        solution = solve_adaptive(
            schedule,
            predict,
            x,
            order=order,
            expansion=expansion,
            solver_type=solver_type,
            t_start=t_start,
            t_end=t_end,
            atol=atol,
            rtol=rtol,
            per_sample=False,
        )
    else:
        grid = functools.partial(timesteps.published(skip), schedule)
        if method == "multistep":
            options = dict(order=order, solver_type=solver_type)
            options["lower_order_final"] = lower_order_final and steps < MANY_STEPS
            make = sde_multistep if algorithm.startswith("sde") else multistep
            ts = grid(steps, t_start=t_start, t_end=t_end)
            solution = solve(make(schedule, expansion, **options), predict, x, ts, key)
        else:
            orders = (
                mixed_orders(steps, order) if method == "singlestep" else [order] * (steps // order)
            )
            # The published grid of mixed orders in lambda has a point for each step; any other has
            # one for each call, of which a step takes as many as its order.
            if method == "singlestep" and skip != "logSNR":
                fine = grid(steps, t_start=t_start, t_end=t_end)
                ts = fine[np.cumsum([0, *orders])]
            else:
                ts = grid(len(orders), t_start=t_start, t_end=t_end)
            solution = _singlesteps(predict, schedule, x, ts, orders, grid, expansion, solver_type)
    if not denoise_to_zero:
        return solution
    end = denoise(predict, solution.x, schedule.t_min if t_end is None else t_end)
    return solution._replace(x=end.x, nfe=solution.nfe + end.nfe)


def mixed_orders(steps: int, order: int) -> list[int]:
    """Orders of single steps that sum to ``steps``, the last of them low (DPM-Solver-fast)."""
    whole, rest = divmod(steps, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + [rest] * (rest > 0)


def _singlesteps(predict, schedule, x, ts, orders, grid, expansion, solver_type) -> Solution:
    """Runs of equal order, one after another, with stages where the grid has them in each step."""
    nfe, start = 0, 0
    for order in sorted(set(orders), reverse=True):
        count = orders.count(order)
        part = ts[start : start + count + 1]
        inner = grid(order, t_start=part[:-1], t_end=part[1:])
        lam = jax.vmap(lambda t: half_log_snr(schedule, t))(inner)
        places = [(lam[i] - lam[0]) / (lam[-1] - lam[0]) for i in range(1, order)]
        solver = singlestep(
            schedule,
            expansion,
            order=order,
            solver_type=solver_type,
            **dict(zip(("r1", "r2"), places, strict=False)),
        )
        solution = solve(solver, predict, x, part)
        x, nfe, start = solution.x, nfe + solution.nfe, start + count
    return Solution(x, nfe)


def _check(method: str, algorithm: str, order: int, steps: int, key: Key | None) -> None:
    if method not in METHODS:
        raise ValueError(
            f"dpm_solver: unknown method {method!r}: choose one of {', '.join(METHODS)}"
        )
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"dpm_solver: unknown algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}"
        )
    offered = (2, 3) if method == "adaptive" else (1, 2, 3)
    if algorithm.startswith("sde"):
        if method != "multistep":
            raise ValueError(f"dpm_solver: {algorithm} is a multistep method, not {method!r}")
        if key is None:
            raise ValueError(f"dpm_solver: {algorithm} adds noise: give a key")
        offered = (1, 2)
    if order not in offered:
        raise ValueError(
            f"dpm_solver: order={order} is not offered by {algorithm} with method={method!r}: "
            f"choose one of {', '.join(map(str, offered))}"
        )
    if method != "adaptive" and steps < order:
        raise ValueError(f"dpm_solver: steps={steps} is fewer than order={order}; take more steps")
