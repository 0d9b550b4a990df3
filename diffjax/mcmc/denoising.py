r"""Denoising MCMC: a Markov chain over data x noise level, whose states are then denoised.

The chain lives at moderate noise, where it moves fast and is close to the data, and never returns
to pure noise. Every few steps its state is a sample after a *short* integration, by any solver; the
long way from noise is paid once a chain. :func:`kernel` is the chain, made of a move of the data
and a move of the level; :func:`denoising_langevin_gibbs` is the instance of the paper. Drawing from
it is in ``diffjax.mcmc.sampler``.

Kim & Ye 2023, "Denoising MCMC for accelerating diffusion-based generative models", arXiv
2209.14593.
"""

import jax.numpy as jnp

from diffjax.mcmc.base import ChainState, Info, Kernel, Move
from diffjax.mcmc.levels import Logits, posterior_mode
from diffjax.mcmc.moves import StepSize, langevin
from diffjax.prediction import Predict, evaluations
from diffjax.random import fold_in
from diffjax.typing import Array

__all__ = ["denoising_langevin_gibbs", "kernel"]


def kernel(predict: Predict, x_move: Move, sigma_move: Move | None = None) -> Kernel:
    """The kernel that moves the data at their level, then the level of the moved data.

    Its target is ``p(x, sigma) = p_sigma(x) p(sigma)``, as far as the moves leave it as it is.

    Args:
        predict: The network in the coordinates of ``mcmc.exploding``.
        x_move: A move of the data, such as ``mcmc.langevin(eta)``.
        sigma_move: A move of the level, such as ``mcmc.posterior_mode(levels, logits)``; None
            where the first move changes the level too.
    """

    def init(position, key=None):
        del key
        x, sigma = (jnp.asarray(value) for value in position)
        if sigma.shape != x.shape[:1]:
            raise ValueError(
                f"a chain starts from (x, sigma) with a level for each state: sigma has shape "
                f"{sigma.shape}, not {x.shape[:1]}"
            )
        return ChainState(x, sigma.astype(x.dtype))

    def step(key, state):
        state, acceptance = x_move.step(fold_in(key, 0), predict, state)
        if sigma_move is not None:
            state, _ = sigma_move.step(fold_in(key, 1), predict, state)
        return state, Info(state.sigma, acceptance)

    calls = sum(move.evaluations for move in (x_move, sigma_move) if move is not None)
    calls *= evaluations(predict)
    return Kernel(init, step, calls)


def denoising_langevin_gibbs(
    predict: Predict, eta: StepSize, levels: Array, logits: Logits
) -> Kernel:
    """DLG: unadjusted Langevin in the data, the predictor's most likely level. The paper's kernel.

    Args:
        predict: The network in the coordinates of ``mcmc.exploding``.
        eta: Step size: about 0.5 for data in [0, 1], hence 2 for data in [-1, 1].
        levels: Noise levels, from ``mcmc.noise_levels``.
        logits: The predictor: ``x -> (chains, levels)``.
    """
    return kernel(predict, langevin(eta), posterior_mode(levels, logits))
