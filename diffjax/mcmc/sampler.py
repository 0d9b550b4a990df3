r"""Drawing from Denoising MCMC: chains that start once, and go on for as many samples as are asked.

    sampler = denoising_mcmc(kernel, integrator, start, n_skip=3, low=0.02)
    chains = sampler.init(predict, keys, shape)
    chains, drawn = sampler.draw(predict, keys, chains)     # one sample of every chain

Both functions are pure; chains are rows, so they spread over devices as samples do, and a saved
:class:`Chains` goes on where it was. A sample costs ``n_skip + n_den + 1`` network evaluations: the
steps of the chain, the integrator's calls, Tweedie's step. What a chain costs before its first
sample, ``sampler.start_calls``, is shared by all its samples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.mcmc.base import ChainState, Info, Kernel, scan
from diffjax.mcmc.integrators import Integrator
from diffjax.prediction import Predict
from diffjax.random import fold_in, normal
from diffjax.schedules import expand
from diffjax.solvers import Solution, denoise
from diffjax.typing import Array, Key

__all__ = ["Chains", "Drawn", "Sampler", "Start", "denoising_mcmc", "finish"]

MakeKernel = Callable[[Predict], Kernel]


class Chains(NamedTuple):
    """Chains between samples: all that is needed to go on.

    Attributes:
        state: Where they stand.
        round: Samples that each has given, ``()`` int32.
    """

    state: ChainState
    round: Array


class Drawn(NamedTuple):
    """A sample of every chain, and where it came from.

    Attributes:
        x: Data, ``(chains, ...)``.
        picked: The state of the window that was denoised.
        info: What the steps of the window did, ``(n_skip, chains)``.
        nfe: Network evaluations per sample: ``n_skip + n_den + 1`` of them with plain moves.
    """

    x: Array
    picked: ChainState
    info: Info
    nfe: int


class Start(NamedTuple):
    """How chains come to be, from pure noise.

    Attributes:
        sigma_max: The level of pure noise.
        integrator: Takes it to data.
        noise: Level to which noise is added to what comes out: 0.5 for data in [0, 1].
        burn_in: Kernels and the number of steps of each, in turn.
    """

    sigma_max: float
    integrator: Integrator
    noise: float
    burn_in: Sequence[tuple[MakeKernel, int]] = ()


class Sampler(NamedTuple):
    """Chains, and samples of them.

    Attributes:
        init: ``(predict, key, shape) -> Chains``; keys ``(chains,)``, ``shape`` that of one sample.
        draw: ``(predict, key, chains) -> (Chains, Drawn)``, with the same keys.
        start_calls: Calls of ``predict`` that ``init`` makes; None with an adaptive integrator.
    """

    init: Callable[[Predict, Key, tuple[int, ...]], Chains]
    draw: Callable[[Predict, Key, Chains], tuple[Chains, Drawn]]
    start_calls: int | None


def denoising_mcmc(
    kernel: MakeKernel,
    integrator: Integrator,
    start: Start,
    *,
    n_skip: int,
    low: float,
    select: str = "least_noisy",
) -> Sampler:
    """The sampler of Denoising MCMC.

    Args:
        kernel: ``predict -> Kernel``, as in ``lambda predict: mcmc.kernel(predict, ...)``.
        integrator: Takes a state of the chain to data.
        start: How chains begin.
        n_skip: Steps of the chain between samples; with 0 the chain stands still.
        low: Level of Tweedie's step, at which the integrator ends.
        select: Which state of a window, its start included, is denoised: ``'least_noisy'`` as in
            the published code, or ``'last'`` as in the paper's text. The chain itself always goes
            on from the last, undenoised.

    Raises:
        ValueError: ``n_skip`` is below 0, or an unknown ``select``.
    """
    if n_skip < 0:
        raise ValueError(f"n_skip must be at least 0, got {n_skip}")
    if select not in ("least_noisy", "last"):
        raise ValueError(f"unknown select {select!r}: choose 'least_noisy' or 'last'")

    def init(predict, key, shape):
        # Round r draws from number r + 1, so that no draw is made twice.
        first = fold_in(key, 0)
        noise = normal(fold_in(first, 0), (key.shape[0], *shape))
        sigma = jnp.full(key.shape, start.sigma_max, noise.dtype)
        x = start.integrator.run(predict, start.sigma_max * noise, sigma, fold_in(first, 1)).x
        x = x + start.noise * normal(fold_in(first, 2), x.shape, x.dtype)
        state = ChainState(x, jnp.full(key.shape, start.noise, x.dtype))
        for index, (make, steps) in enumerate(start.burn_in):
            state, _ = scan(make(predict), fold_in(first, 3 + index), state, steps)
        return Chains(state, jnp.zeros((), jnp.int32))

    def draw(predict, key, chains):
        own = fold_in(key, chains.round + 1)
        made = kernel(predict)
        state, picked, info = _window(made, fold_in(own, 0), chains.state, n_skip, select)
        solution = finish(integrator, predict, picked, low, fold_in(own, 1))
        nfe = n_skip * made.evaluations + solution.nfe
        return Chains(state, chains.round + 1), Drawn(solution.x, picked, info, nfe)

    calls = start.integrator.calls
    if calls is not None:
        calls += sum(make(_nothing).evaluations * steps for make, steps in start.burn_in)
    return Sampler(init, draw, calls)


def finish(
    integrator: Integrator, predict: Predict, state: ChainState, low: float, key: Key | None
) -> Solution:
    r"""Takes states to data: the integrator, then Tweedie's step ``x + e^2 score(x, e)``.

    From ``state = (sigma_max z, sigma_max)`` this is the integrator alone, without any chain.

    Args:
        integrator: What takes them.
        predict: The network in the coordinates of ``mcmc.exploding``.
        state: Where they start.
        low: ``e``, the level of Tweedie's step.
        key: One key, or one per sample.
    """
    solution = integrator.run(predict, state.x, state.sigma, key)
    last = denoise(predict, solution.x, jnp.full_like(state.sigma, low))
    return last._replace(nfe=solution.nfe + last.nfe)


def _window(
    kernel: Kernel, key: Key, state: ChainState, n_skip: int, select: str
) -> tuple[ChainState, ChainState, Info]:
    """The state after ``n_skip`` steps, the state chosen on the way, and what the steps did."""

    def body(carry, index):
        state, picked = carry
        state, info = kernel.step(fold_in(key, index), state)
        better = state.sigma < picked.sigma if select == "least_noisy" else True
        picked = jax.tree.map(
            lambda new, old: jnp.where(expand(better, new), new, old), state, picked
        )
        return (state, picked), info

    steps = jnp.arange(n_skip, dtype=jnp.uint32)
    (state, picked), info = jax.lax.scan(body, (state, state), steps)
    return state, picked, info


def _nothing(x: Array, sigma: Array):
    """Stands for a network where only the number of calls is asked for."""
    raise AssertionError("never called")
