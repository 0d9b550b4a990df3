r"""The contract of Markov kernels over data x noise level, in BlackJAX's form.

All chains live in the coordinates of an exploding variance, ``y = x / alpha`` with the noise level
``sigma / alpha``, whatever the schedule of the network: :func:`exploding` takes its ``predict``
there. The time of that ``predict`` *is* the noise level, so that every solver of the library runs
on it with ``schedules.EDM``.

A kernel is made of *moves*, which all have one form: some change the data given the level
(``diffjax.mcmc.moves``), some the level given the data (``diffjax.mcmc.levels``).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict, Prediction, evaluations, with_evaluations
from diffjax.random import fold_in
from diffjax.schedules import EDM, Schedule, expand, half_log_snr
from diffjax.typing import Array, Key

__all__ = ["ChainState", "Info", "Kernel", "Move", "exploding", "noise_range", "scan", "score"]


class ChainState(NamedTuple):
    """Where the chains stand.

    Attributes:
        x: States ``(chains, ...)``, in the coordinates ``x / alpha``.
        sigma: Their noise levels ``(chains,)``, in the units of ``x``.
    """

    x: Array
    sigma: Array


class Info(NamedTuple):
    """What a step did.

    Attributes:
        sigma: The noise levels after it, ``(chains,)``.
        acceptance: Probability with which the move of the data was accepted, ``(chains,)``; 1 for
            moves that are not adjusted.
    """

    sigma: Array
    acceptance: Array


class Kernel(NamedTuple):
    """A Markov kernel; pure functions with BlackJAX's names and order of arguments.

    Attributes:
        init: ``(position, key) -> ChainState``; the position is a pair ``(x, sigma)``.
        step: ``(key, ChainState) -> (ChainState, Info)``. One key, or one per chain, in which case
            chain ``i`` depends on ``key[i]`` alone.
        evaluations: Network evaluations per chain in a step.
    """

    init: Callable[[tuple[Array, Array], Key | None], ChainState]
    step: Callable[[Key, ChainState], tuple[ChainState, Info]]
    evaluations: int


class Move(NamedTuple):
    """A part of a kernel's step.

    Attributes:
        step: ``(key, predict, ChainState) -> (ChainState, acceptance)``, acceptance ``(chains,)``.
        evaluations: Calls of ``predict`` in it.
    """

    step: Callable[[Key, Predict, ChainState], tuple[ChainState, Array]]
    evaluations: int = 0


def exploding(schedule: Schedule, predict: Predict) -> Predict:
    """``predict`` in the coordinates ``y = x / alpha``, whose time is ``sigma / alpha``.

    ``x0`` and ``eps`` are the same in both, so the score there is ``-eps / sigma``. With EDM's
    schedule nothing changes at all.

    Args:
        schedule: The forward process that the network knows.
        predict: The network seen through it.

    Returns:
        A ``predict`` for ``schedules.EDM``. Costs what ``predict`` costs.
    """
    if isinstance(schedule, EDM):
        return predict

    def in_ve(y: Array, sigma: Array) -> Prediction:
        t = schedule.time(-jnp.log(sigma))
        return predict((expand(schedule.alpha(t), y) * y).astype(y.dtype), t)

    return with_evaluations(in_ve, evaluations(predict))


def noise_range(schedule: Schedule) -> EDM:
    """The same forward process in the coordinates of :func:`exploding`: the levels it visits."""
    ends = (jnp.exp(-half_log_snr(schedule, t)) for t in (schedule.t_min, schedule.t_max))
    return EDM(*map(float, ends))


def score(predict: Predict, x: Array, sigma: Array) -> Array:
    """``grad log p_sigma(x) = (x0(x, sigma) - x) / sigma^2``. Costs one call."""
    return -predict(x, sigma).eps / expand(sigma, x)


def scan(kernel: Kernel, key: Key, state: ChainState, steps: int) -> tuple[ChainState, Info]:
    """Runs the chains: one ``lax.scan``, so one trace of the network.

    Args:
        kernel: What takes a step.
        key: One key, or one per chain; step ``n`` draws from ``fold_in(key, n)``.
        state: Where the chains stand.
        steps: How many.

    Returns:
        The last state, and the steps' infos stacked, ``(steps, chains)``.
    """

    def body(state: ChainState, index: Array):
        return kernel.step(fold_in(key, index), state)

    return jax.lax.scan(body, state, jnp.arange(steps, dtype=jnp.uint32))
