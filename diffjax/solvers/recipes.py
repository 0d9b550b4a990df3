"""Solvers by name and by budget: what a config or a command line says, made a sampler.

A recipe is a solver, a grid and whether to end with the step to the data, chosen so that a sample
costs exactly the number of network calls asked for.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from diffjax.prediction import Predict
from diffjax.schedules import Schedule
from diffjax.solvers import base, score_sde, timesteps
from diffjax.solvers.adams import deis, ipndm, lms
from diffjax.solvers.ancestral import ancestral, ancestral_form
from diffjax.solvers.base import Solution, Solver, Span
from diffjax.solvers.ddim import ddim
from diffjax.solvers.euler import euler
from diffjax.solvers.heun import heun, heun_stochastic
from diffjax.solvers.multistep import multistep
from diffjax.solvers.sde_dpm_solver import sde_multistep
from diffjax.solvers.singlestep import singlestep
from diffjax.solvers.unipc import unipc
from diffjax.typing import Array, Key

__all__ = ["SOLVERS", "Recipe", "recipe", "run"]

PREDICTORS: dict[str, Callable[..., Solver]] = {
    "ancestral": ancestral,
    "euler_maruyama": score_sde.euler_maruyama,
    "probability_flow": score_sde.probability_flow,
    "reverse_diffusion": score_sde.reverse_diffusion,
}
# Those that leave a sample independent of its batch.
CORRECTORS: dict[str, Callable[..., Solver]] = {
    "annealed_langevin": score_sde.annealed_langevin,
    "langevin": lambda *args: score_sde.langevin(*args, norms="sample"),
}


def _predictor_corrector(
    schedule: Schedule,
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "annealed_langevin",
    snr: float = 0.16,
    corrections: int = 1,
) -> Solver:
    for kind, name, known in (
        ("predictor", predictor, PREDICTORS),
        ("corrector", corrector, CORRECTORS),
    ):
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    return score_sde.predictor_corrector(
        PREDICTORS[predictor](schedule), CORRECTORS[corrector](schedule, snr, corrections)
    )


def _ancestral(solver: Callable[..., Solver], **preset) -> Callable[..., Solver]:
    """The ancestral form of a solver without memory."""

    def make(schedule: Schedule, *, eta: float = 1.0, inflation: float = 1.0) -> Solver:
        return ancestral_form(schedule, solver(schedule, **preset), eta, inflation)

    return make


# Options set here are defaults: a config may set them otherwise.
SOLVERS: dict[str, Callable[..., Solver]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "deis": deis,
    "dpm2": partial(singlestep, expansion="eps"),
    "dpm2_ancestral": _ancestral(singlestep, expansion="eps"),
    "dpm_solver_2m": partial(multistep, expansion="eps"),
    "dpm_solver_2s": partial(singlestep, expansion="eps"),
    "dpm_solver_3m": partial(multistep, expansion="eps", order=3),
    "dpm_solver_3s": partial(singlestep, expansion="eps", order=3),
    "dpm_solver_pp_2m": multistep,
    "dpm_solver_pp_2s": singlestep,
    "dpm_solver_pp_2s_ancestral": _ancestral(singlestep),
    "dpm_solver_pp_3m": partial(multistep, order=3),
    "dpm_solver_pp_3s": partial(singlestep, order=3),
    "euler": euler,
    "euler_ancestral": partial(ddim, eta=1.0),
    "euler_maruyama": score_sde.euler_maruyama,
    "heun": heun,
    "heun_stochastic": heun_stochastic,
    "ipndm": ipndm,
    "lms": lms,
    "predictor_corrector": _predictor_corrector,
    "probability_flow": score_sde.probability_flow,
    "reverse_diffusion": score_sde.reverse_diffusion,
    "sde_dpm_solver_1": partial(sde_multistep, expansion="eps", order=1),
    "sde_dpm_solver_2m": partial(sde_multistep, expansion="eps"),
    "sde_dpm_solver_pp_1": partial(sde_multistep, order=1),
    "sde_dpm_solver_pp_2m": sde_multistep,
    "unip": partial(unipc, corrector=False),
    "unipc": unipc,
}


class Recipe(NamedTuple):
    """How samples are drawn.

    Attributes:
        solver: What takes a step.
        ts: The grid, ``(steps + 1,)``.
        denoise: Whether the step to the data follows the grid.
    """

    solver: Solver
    ts: Array
    denoise: bool

    @property
    def calls(self) -> int:
        """Calls of ``predict`` in a run."""
        return (self.ts.shape[0] - 1) * self.solver.evaluations + self.denoise


def recipe(
    name: str,
    schedule: Schedule,
    calls: int,
    *,
    grid: str = "karras",
    denoise: bool = True,
    **options,
) -> Recipe:
    """The named solver on the named grid, at exactly ``calls`` calls of ``predict``.

    Args:
        name: One of ``SOLVERS``.
        schedule: The forward process.
        calls: Calls of ``predict`` a sample, the step to the data included.
        grid: One of ``timesteps.GRIDS``.
        denoise: Whether to end with the step to the data.
        **options: The solver's own arguments.

    Raises:
        ValueError: An unknown name or option, or a number of calls that the solver cannot make.
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(SOLVERS)}")
    if grid not in timesteps.GRIDS:
        raise ValueError(f"unknown grid {grid!r}: choose one of {', '.join(timesteps.GRIDS)}")
    try:
        solver = SOLVERS[name](schedule, **options)
    except TypeError as error:
        raise ValueError(f"solver {name!r} with options {options}: {error}") from None
    steps, rest = divmod(calls - denoise, solver.evaluations)
    if rest or steps < 1:
        below = max(steps, 1) * solver.evaluations + denoise
        raise ValueError(
            f"solver {name!r} takes {solver.evaluations} network calls a step"
            f"{' and 1 for the step to the data' if denoise else ''}: {calls} calls cannot be "
            f"made, use {below} or {below + solver.evaluations}"
        )
    return Recipe(solver, timesteps.GRIDS[grid](schedule, steps), denoise)


def run(
    recipe: Recipe,
    predict: Predict,
    x: Array,
    key: Key | None = None,
    *,
    trajectory: bool = False,
    callback: Callable[[Span, Array], None] | None = None,
) -> Solution:
    """Solves along the recipe's grid, then takes the step to the data if asked."""
    solution = base.solve(
        recipe.solver, predict, x, recipe.ts, key, trajectory=trajectory, callback=callback
    )
    if not recipe.denoise:
        return solution
    end = base.denoise(predict, solution.x, recipe.ts[-1])
    return solution._replace(x=end.x, nfe=solution.nfe + end.nfe)
