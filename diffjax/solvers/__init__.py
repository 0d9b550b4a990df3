"""Solvers of the reverse process, one file a family; each is a pure ``(init, step)``."""

from diffjax.solvers import dpm_solver, learned, optimal_grids, timesteps, unipc
from diffjax.solvers.adams import deis, ipndm, lms, pndm, pseudo_runge_kutta
from diffjax.solvers.adaptive import solve_adaptive
from diffjax.solvers.ancestral import ancestral, ancestral_form
from diffjax.solvers.base import Memory, Solution, Solver, Span, denoise, one_step, solve
from diffjax.solvers.ddim import ddim
from diffjax.solvers.dpm_solver_v3 import dpm_solver_v3
from diffjax.solvers.euler import euler
from diffjax.solvers.heun import heun, heun_stochastic
from diffjax.solvers.model_statistics import Statistics, statistics
from diffjax.solvers.multistep import multistep
from diffjax.solvers.ode import encode, solve_ode, spherical
from diffjax.solvers.recipes import SOLVERS, Recipe, recipe, run
from diffjax.solvers.runge_kutta import dormand_prince, runge_kutta
from diffjax.solvers.score_sde import (
    annealed_langevin,
    euler_maruyama,
    langevin,
    predictor_corrector,
    probability_flow,
    reverse_diffusion,
)
from diffjax.solvers.sde_dpm_solver import brownian_path, sde_multistep
from diffjax.solvers.singlestep import singlestep

__all__ = [
    "SOLVERS",
    "Memory",
    "Recipe",
    "Solution",
    "Solver",
    "Span",
    "Statistics",
    "ancestral",
    "ancestral_form",
    "annealed_langevin",
    "brownian_path",
    "ddim",
    "deis",
    "denoise",
    "dormand_prince",
    "dpm_solver",
    "dpm_solver_v3",
    "encode",
    "euler",
    "euler_maruyama",
    "heun",
    "heun_stochastic",
    "ipndm",
    "langevin",
    "learned",
    "lms",
    "multistep",
    "one_step",
    "optimal_grids",
    "pndm",
    "predictor_corrector",
    "probability_flow",
    "pseudo_runge_kutta",
    "recipe",
    "reverse_diffusion",
    "run",
    "runge_kutta",
    "sde_multistep",
    "singlestep",
    "solve",
    "solve_adaptive",
    "solve_ode",
    "spherical",
    "statistics",
    "timesteps",
    "unipc",
]
