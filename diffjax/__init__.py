"""diffjax: a JAX/Flax functional toolkit for diffusion models.

Four pure functions make a diffusion system, and nothing here has hidden state::

    schedule   t -> alpha_t, sigma_t        the forward process x_t = alpha_t x_0 + sigma_t eps
    predict    (x_t, t) -> Prediction       a network seen through its schedule
    solver     (init, step)                 one step of the reverse process
    system     (init, update, sample)       what is trained, and how it draws samples

The modules below are the library's heart and need only JAX; networks, data, metrics and the
training loop are imported by name (``diffjax.models``, ``diffjax.data``, ``diffjax.train``, ...).
"""

from diffjax import analytic, guidance, likelihood, losses, mcmc, prediction, schedules, solvers
from diffjax.prediction import Prediction
from diffjax.solvers import Solution, Solver, Span, solve

__version__ = "0.1.0"

__all__ = [
    "Prediction",
    "Solution",
    "Solver",
    "Span",
    "analytic",
    "guidance",
    "likelihood",
    "losses",
    "mcmc",
    "prediction",
    "schedules",
    "solve",
    "solvers",
]
