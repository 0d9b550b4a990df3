"""Solvers of the reverse process, one file a family; each is a pure ``(init, step)``."""

from diffjax.solvers import timesteps
from diffjax.solvers.ancestral import ancestral
from diffjax.solvers.base import Memory, Solution, Solver, Span, denoise, one_step, solve
from diffjax.solvers.ddim import ddim
from diffjax.solvers.dpm_solver import multistep, singlestep
from diffjax.solvers.euler import euler
from diffjax.solvers.heun import heun, heun_stochastic
from diffjax.solvers.recipes import SOLVERS, Recipe, recipe, run

__all__ = [
    "SOLVERS",
    "Memory",
    "Recipe",
    "Solution",
    "Solver",
    "Span",
    "ancestral",
    "ddim",
    "denoise",
    "euler",
    "heun",
    "heun_stochastic",
    "multistep",
    "one_step",
    "recipe",
    "run",
    "singlestep",
    "solve",
    "timesteps",
]
