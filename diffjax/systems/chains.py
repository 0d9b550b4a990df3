"""Sampling by Denoising MCMC in a system: chains that go on from one request to the next.

A system does not know how it is drawn from; with :func:`chain_sampler` for its ``draw`` it is drawn
from by chains. Sample ``i`` of a seed is what chain ``i mod chains`` gives in its round
``i // chains``: it depends on the seed, on ``i`` and on the number of chains, not on the devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax.mcmc import Chains, Sampler, exploding
from diffjax.prediction import Predict
from diffjax.random import per_sample
from diffjax.schedules import Schedule
from diffjax.systems.base import Request, Samples
from diffjax.typing import Array, Key

__all__ = ["Walk", "chain_sampler"]

Walk = Callable[[Callable[[Request], Predict], Key, Request], Samples]


def chain_sampler(
    schedule: Schedule, sampler: Sampler, shape: tuple[int, ...], chains: int
) -> Walk:
    """How samples of a shape are drawn by chains, for ``systems.sampler(..., walk=...)``.

    Args:
        schedule: The forward process that the network knows.
        sampler: From ``mcmc.denoising_mcmc``.
        shape: Shape of one sample, ``(H, W, C)``.
        chains: How many chains there are.

    Returns:
        ``walk(bind, key, request)``, where ``bind(request)`` is the ``predict`` of some rows:
        labels, guidance and thresholding. The rows of a request are one round of some chains, or
        rounds of all, one after the other; labels are those of the first round. With
        ``request.chains``, which earlier samples gave as ``samples.chains``, chains go on.
    """

    def walk(bind: Callable[[Request], Predict], key: Key, request: Request) -> Samples:
        number = request.index.shape[0]
        rows = min(number, chains)
        rounds = -(-number // rows)

        def first(leaf: Array) -> Array:
            return leaf[:rows] if jnp.ndim(leaf) else leaf

        labels = None if request.labels is None else first(request.labels)
        guidance = request.guidance
        if not isinstance(guidance, int | float):
            guidance = first(guidance)
        keys = per_sample(key, first(request.index) % chains)
        noised = exploding(schedule, bind(Request(first(request.index), labels, guidance)))
        state = request.chains
        if state is None:
            state = sampler.init(noised, keys, shape)
        nfe = []

        def one_round(state: Chains, _):
            state, drawn = sampler.draw(noised, keys, state)
            nfe.append(drawn.nfe)
            return state, drawn.x

        state, x = jax.lax.scan(one_round, state, None, length=rounds)
        x = x.reshape(-1, *shape)[:number]
        return Samples(x, request.labels, nfe[-1], state)

    return walk
