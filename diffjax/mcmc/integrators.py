r"""The way from a noisy state to data: any solver on a grid of each sample's own, by its budget.

An :class:`Integrator` starts at the level of each sample, ``sigma (batch,)``, and its grid is the
usual one with the largest level replaced by that. The six of the paper are compositions of solvers
of the library:

=======  ==============================================  ===================  ==================
name     solver                                          grid                 calls
=======  ==============================================  ===================  ==================
kar1     Heun, EDM's deterministic sampler               Karras, then to 0    odd, from 3
kar2     Heun with churn, EDM's stochastic sampler       Karras, then to 0    odd, from 3
pf       probability flow of Score-SDE                   geometric, then to 0 from 2
rd       reverse diffusion of Score-SDE                  geometric, then to 0 from 2
em       Euler-Maruyama of the reverse SDE               geometric            from 2
rk45     Dormand-Prince on the ODE in ``log sigma``      geometric            6 a step, or adaptive
=======  ==============================================  ===================  ==================

Kim & Ye 2023 (arXiv 2209.14593), whose constants are for data in [0, 1]: here they are in units of
the range of the data, so that nothing need be redone for [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffjax.prediction import Predict, evaluations, with_evaluations
from diffjax.schedules import EDM, VE, expand
from diffjax.solvers import (
    Solution,
    Solver,
    denoise,
    dormand_prince,
    euler_maruyama,
    heun,
    heun_stochastic,
    multistep,
    one_step,
    probability_flow,
    reverse_diffusion,
    solve,
    timesteps,
)
from diffjax.solvers.ode import integrate
from diffjax.solvers.unipc import unipc
from diffjax.typing import Array, Key

__all__ = ["INTEGRATORS", "Integrator", "along", "em", "integrator", "rk45_adaptive"]

CHURN = 80.0  # S_churn of EDM's stochastic sampler on the VE network of CIFAR-10
INFLATION = 1.007
VE_CLOCK = EDM()  # time is the noise level


class Integrator(NamedTuple):
    """From a level of each sample's own to data.

    Attributes:
        run: ``(predict, x, sigma, key) -> Solution``, ``predict`` in the coordinates of
            ``mcmc.exploding``; ``x`` is left with noise ``low`` at most.
        calls: Calls of ``predict`` it makes; None where the error decides.
    """

    run: Callable[[Predict, Array, Array, Key | None], Solution]
    calls: int | None


def along(solver: Solver, steps: int, low: float, *, grid: str = "karras", end: str) -> Integrator:
    """Any solver along one of the library's grids, from each sample's level to ``low``.

    Args:
        solver: Made for ``schedules.EDM``, whose time is the noise level.
        steps: Its steps down to ``low``.
        low: Level at which the grid ends.
        grid: One of ``timesteps.GRIDS``.
        end: What follows: ``'stay'`` for nothing, ``'denoise'`` for one call that takes ``x0``,
            ``'zero'`` for one more step of the solver, to no noise.

    Raises:
        ValueError: An unknown ``end``, or no step at all.
    """
    if end not in ("stay", "denoise", "zero"):
        raise ValueError(f"along: unknown end {end!r}: choose 'stay', 'denoise' or 'zero'")
    if steps < 1:
        raise ValueError(f"along: at least 1 step is needed, got {steps}")

    def run(predict, x, sigma, key=None):
        # A level at or below the last one leaves nothing to do: the grid is then a point.
        start = jnp.maximum(sigma, low * (1 + 1e-3))
        ts = timesteps.GRIDS[grid](VE_CLOCK, steps, t_start=start, t_end=low)
        if end == "zero":
            ts = jnp.concatenate([ts, jnp.zeros_like(ts[:1])])
        solution = solve(solver, predict, x, ts, key)
        if end != "denoise":
            return solution
        last = denoise(predict, solution.x, ts[-1])
        return last._replace(nfe=solution.nfe + last.nfe)

    return Integrator(run, (steps + (end == "zero")) * solver.evaluations + (end == "denoise"))


def _heun_steps(name: str, calls: int) -> int:
    steps, odd = divmod(calls, 2)
    if steps < 1 or not odd:
        raise _infeasible(name, calls, "an odd number of calls, from 3", max(calls - 1, 3))
    return steps


def _infeasible(name: str, calls: int, rule: str, possible: int) -> ValueError:
    return ValueError(
        f"{name} makes {rule}, so {calls} cannot be made: use {possible} calls, or others for the "
        "chain"
    )


def _kar1(calls: int, low: float, data_range: float) -> Integrator:
    del data_range
    return along(heun(VE_CLOCK), _heun_steps("kar1", calls), low, end="denoise")


def _kar2(calls: int, low: float, data_range: float) -> Integrator:
    steps = _heun_steps("kar2", calls)
    solver = heun_stochastic(
        VE_CLOCK,
        gamma=min(CHURN / (steps + 2), 2**0.5 - 1),  # the paper's N counts the points and zero
        noise_min=0.05 * data_range,
        noise_max=1.0 * data_range,
        inflation=INFLATION,
    )
    return along(solver, steps, low, end="denoise")


def _chain(name: str, make: Callable) -> Callable[[int, float, float], Integrator]:
    def build(calls: int, low: float, data_range: float) -> Integrator:
        del data_range
        if calls < 2:
            raise _infeasible(name, calls, "2 calls at least", 2)
        return along(make(VE_CLOCK), calls - 1, low, grid="log_snr", end="zero")

    return build


def em(calls: int, low: float, data_range: float = 1.0) -> Integrator:
    """Euler-Maruyama in the time in which each sample's ``log sigma`` falls evenly to ``low``.

    As published, ``calls`` times from 1 to 0, both among them, and steps of ``1 / calls`` although
    the times are a little further apart.

    Args:
        calls: At least 2.
        low: Level at which the grid ends.
        data_range: Not used.
    """
    del data_range
    if calls < 2:
        raise _infeasible("em", calls, "2 calls at least", 2)

    def run(predict, x, sigma, key=None):
        schedule = VE(low, jnp.maximum(sigma, low * (1 + 1e-3)))
        solver = euler_maruyama(schedule)

        def by_time(x, t):
            return predict(x, schedule.sigma(t))

        def step(predict, x, span, key):
            length = span.t - span.t_next
            t = 1 - (1 - span.t) * calls / (calls - 1)
            stretched = span._replace(t=t, t_next=t - length)
            return solver.step(predict, x, (), stretched, key)[0]

        timed = with_evaluations(by_time, evaluations(predict))
        return solve(one_step(step), timed, x, jnp.linspace(1.0, 0.0, calls + 1), key)

    return Integrator(run, calls)


def rk45_adaptive(rtol: float = 1e-5, atol: float = 1e-5, low: float = 0.01) -> Integrator:
    """Dormand-Prince with error control, all samples in the same steps: the paper's RK45.

    Integrates over the share of the way in ``log sigma`` that is left, which starts at each
    sample's level. The solution's ``nfe`` is an array, what was counted.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        low: Level at which it ends.
    """

    def run(predict, x, sigma, key=None):
        del key
        log_low, log_range = jnp.log(low), jnp.log(jnp.maximum(sigma, low * (1 + 1e-3)) / low)

        def field(share, y):
            level = jnp.exp(log_low + share * log_range)
            slope = expand(log_range * level, y) * predict(y, level).eps
            return slope.astype(y.dtype)

        end, _, calls = integrate(field, x, 1.0, 0.0, method="dopri5", rtol=rtol, atol=atol)
        return Solution(end.astype(x.dtype), calls * evaluations(predict))

    return Integrator(run, None)


def _rk45(calls: int, low: float, data_range: float) -> Integrator:
    del data_range
    solver = dormand_prince(VE_CLOCK)
    steps, rest = divmod(calls, solver.evaluations)
    if rest or steps < 1:
        possible = max(steps, 1) * solver.evaluations
        raise _infeasible("rk45", calls, f"{solver.evaluations} calls a step", possible)
    return along(solver, steps, low, grid="log_snr", end="stay")


def _exponential(make: Callable) -> Callable[[int, float, float], Integrator]:
    def build(calls: int, low: float, data_range: float) -> Integrator:
        del data_range
        return along(make(VE_CLOCK), calls, low, grid="log_snr", end="stay")

    return build


INTEGRATORS: dict[str, Callable[[int, float, float], Integrator]] = {
    "kar1": _kar1,
    "pf": _chain("pf", probability_flow),
    "rk45": _rk45,
    "kar2": _kar2,
    "rd": _chain("rd", reverse_diffusion),
    "em": em,
    "dpm_solver_pp": _exponential(multistep),
    "unipc": _exponential(unipc),
}


def integrator(name: str, calls: int, *, low: float, data_range: float = 1.0) -> Integrator:
    """The named integrator at exactly ``calls`` calls of ``predict``, Tweedie's step not counted.

    Args:
        name: One of ``INTEGRATORS``: the paper's six, ``'dpm_solver_pp'`` or ``'unipc'``.
        calls: Its calls.
        low: Level at which it ends; 0.01 for data in [0, 1].
        data_range: Length of the range of the data: 1 for [0, 1], 2 for [-1, 1].

    Raises:
        ValueError: An unknown name, or calls that it cannot make.
    """
    if name not in INTEGRATORS:
        raise ValueError(f"unknown integrator {name!r}: choose one of {', '.join(INTEGRATORS)}")
    if not low > 0 or calls < 1:
        raise ValueError(f"{name}: need calls >= 1 and low > 0, got calls={calls}, low={low:g}")
    return INTEGRATORS[name](calls, low, data_range)
