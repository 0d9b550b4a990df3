"""Markov chain Monte Carlo with diffusion models; kernels are pure ``(init, step)`` as BlackJAX's.

Denoising MCMC in one line each: what moves the data, what moves the level, what denoises.
"""

from diffjax.mcmc import diagnostics
from diffjax.mcmc.base import (
    ChainState,
    Info,
    Kernel,
    Move,
    exploding,
    noise_range,
    scan,
    score,
)
from diffjax.mcmc.denoising import denoising_langevin_gibbs, kernel
from diffjax.mcmc.integrators import INTEGRATORS, Integrator, along, integrator, rk45_adaptive
from diffjax.mcmc.levels import (
    Logits,
    density_rate,
    log_langevin,
    mixture_logits,
    noise_levels,
    posterior_draw,
    posterior_mean,
    posterior_mode,
    score_rate,
    within,
)
from diffjax.mcmc.moves import (
    blackjax_gradient_move,
    blackjax_move,
    excursion,
    langevin,
    mala,
    noise_drift,
    relative,
    renoise,
)
from diffjax.mcmc.sampler import Chains, Drawn, Sampler, Start, denoising_mcmc, finish

__all__ = [
    "INTEGRATORS",
    "ChainState",
    "Chains",
    "Drawn",
    "Info",
    "Integrator",
    "Kernel",
    "Logits",
    "Move",
    "Sampler",
    "Start",
    "along",
    "blackjax_gradient_move",
    "blackjax_move",
    "denoising_langevin_gibbs",
    "denoising_mcmc",
    "density_rate",
    "diagnostics",
    "excursion",
    "exploding",
    "finish",
    "integrator",
    "kernel",
    "langevin",
    "log_langevin",
    "mala",
    "mixture_logits",
    "noise_drift",
    "noise_levels",
    "noise_range",
    "posterior_draw",
    "posterior_mean",
    "posterior_mode",
    "relative",
    "renoise",
    "rk45_adaptive",
    "scan",
    "score",
    "score_rate",
    "within",
]
