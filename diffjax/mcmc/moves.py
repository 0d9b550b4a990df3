r"""Moves of the data at a fixed noise level: Langevin dynamics and what stands in its place.

Each is a :class:`~diffjax.mcmc.base.Move` that should leave ``p_sigma``, the data with noise of
variance ``sigma^2``, as it is. Unadjusted Langevin does so for small steps only: it adds
``eta^2 / (4 sigma^2)`` to the variance of the noise in a step, which a following move of the level
makes permanent (see :func:`noise_drift`). :func:`mala` corrects it for a second network call,
:func:`renoise` for none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.mcmc.base import ChainState, Move, score
from diffjax.random import fold_in, normal
from diffjax.schedules import EDM, expand
from diffjax.solvers import Solver, Span, ddim, solve, timesteps
from diffjax.typing import Array, Key

__all__ = [
    "StepSize",
    "blackjax_gradient_move",
    "blackjax_move",
    "excursion",
    "langevin",
    "mala",
    "noise_drift",
    "relative",
    "renoise",
]

StepSize = float | Callable[[Array], Array]
LogDensity = Callable[[Array, Array], Array]


def relative(c: float) -> Callable[[Array], Array]:
    """The step size ``eta = c sigma^2``: as far at every level, in units of the noise.

    Langevin dynamics contracts the noise by ``1 - c/2`` a step; it is stable for ``c < 4``, and
    beyond ``c = 2`` it overshoots.

    Raises:
        ValueError: ``c`` is not between 0 and 4.
    """
    if not 0 < c < 4:
        raise ValueError(f"eta = c sigma^2 is stable for 0 < c < 4, got c={c}")
    return lambda sigma: c * sigma**2


def noise_drift(sigma: Array, eta: float, steps: Array) -> Array:
    r"""How noise rises along unadjusted Langevin dynamics whose level follows the data.

    .. math:: \sigma_n^4 = \sigma_0^4 + \tfrac12 \eta^2 n

    In many dimensions, away from the ends of the range of levels: a step adds
    ``eta^2 / (4 sigma^2)`` to the variance where the data themselves have none.

    Args:
        sigma: Level at the start.
        eta: Step size, a constant.
        steps: Steps taken, ``n``.
    """
    return (sigma**4 + eta**2 * steps / 2) ** 0.25


def langevin(eta: StepSize) -> Move:
    r"""Unadjusted Langevin dynamics, the paper's move.

    .. math:: x' = x + \tfrac{\eta}{2} \nabla\log p_\sigma(x) + \sqrt{\eta}\, z

    Stable where ``eta < 4 sigma^2``. One network call. Kim & Ye 2023 (arXiv 2209.14593), eq. (9).

    Args:
        eta: Step size, a number in squared units of the data or a function of ``sigma``, such as
            :func:`relative`.

    Raises:
        ValueError: ``eta`` is a number that is not above 0.
    """
    size = _step_size(eta)

    def step(key, predict, state):
        x, sigma = state
        length = expand(size(sigma), x)
        mean = x + 0.5 * length * score(predict, x, sigma)
        x_next = mean + jnp.sqrt(length) * normal(key, x.shape, x.dtype)
        return ChainState(x_next.astype(x.dtype), sigma), jnp.ones_like(sigma)

    return Move(step, evaluations=1)


def mala(eta: StepSize, log_density: LogDensity | None = None) -> Move:
    r"""Metropolis-adjusted Langevin dynamics: :func:`langevin`'s proposal, accepted or not.

    .. math:: \log a = \log\frac{p(x')}{p(x)} -
              \frac{\|x - x' - \tfrac\eta2 s(x')\|^2 - \|x' - x - \tfrac\eta2 s(x)\|^2}{2\eta}

    Where only the score is known, ``log p(x')/p(x)`` is taken as ``(s(x) + s(x'))/2 . (x' - x)``,
    the trapezium rule along the step, which leaves ``log a = -eta (|s(x')|^2 - |s(x)|^2) / 8``:
    exact for Gaussians, of third order in the step otherwise. Two network calls.

    Args:
        eta: Step size, as for :func:`langevin`. The best rate of acceptance is about 0.57.
        log_density: ``(x, sigma) -> log p_sigma(x)``, ``(chains,)``, where it is known.

    Raises:
        ValueError: ``eta`` is a number that is not above 0.
    """
    size = _step_size(eta)

    def step(key, predict, state):
        x, sigma = state
        eta = size(sigma)
        length = expand(eta, x)
        slope = score(predict, x, sigma)
        noise = normal(fold_in(key, 0), x.shape, x.dtype)
        proposal = (x + 0.5 * length * slope + jnp.sqrt(length) * noise).astype(x.dtype)
        slope_there = score(predict, proposal, sigma)
        if log_density is None:
            log_ratio = -0.125 * eta * (_square(slope_there) - _square(slope))
        else:
            back = (x - proposal - 0.5 * length * slope_there) / jnp.sqrt(length)
            log_ratio = log_density(proposal, sigma) - log_density(x, sigma)
            log_ratio += 0.5 * (_square(noise) - _square(back))
        # A proposal that is not finite is refused.
        acceptance = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0.0))
        accepted = _uniform(fold_in(key, 1), acceptance) < acceptance
        x_next = jnp.where(expand(accepted, x), proposal, x)
        return ChainState(x_next, sigma), acceptance

    return Move(step, evaluations=2)


def renoise(share: float, solver: Solver | None = None) -> Move:
    r"""A solver's step down to less noise, then fresh noise back up to the level left.

    .. math:: x' = \Phi(x; \sigma \to \sigma\sqrt{1 - \rho}) + \sqrt{\rho}\, \sigma z

    As exact as the solver, for each part leaves the marginals as they should be; with DDIM it is
    Langevin dynamics of ``eta = 2 sigma^2 (1 - sqrt(1 - rho))`` with so much less noise that the
    level does not rise. With Heun's method the error in directions along the data vanishes too.

    Args:
        share: Share ``rho`` of the noise's variance that is made anew, in (0, 1).
        solver: Any deterministic one-step solver for ``schedules.EDM``; DDIM if None. As many
            network calls as its step has.

    Raises:
        ValueError: The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"renoise: the share must be between 0 and 1, got {share}")
    down = ddim(EDM()) if solver is None else solver

    def step(key, predict, state):
        x, sigma = state
        below = jnp.sqrt(1 - share) * sigma
        only = jnp.asarray(0, jnp.int32)
        span = Span(sigma, below, only, only + 1)
        cleaner, _ = down.step(predict, x, down.init(x), span, None)
        noise = expand(jnp.sqrt(share) * sigma, x) * normal(key, x.shape, x.dtype)
        return ChainState((cleaner + noise).astype(x.dtype), sigma), jnp.ones_like(sigma)

    return Move(step, evaluations=down.evaluations)


def excursion(
    high: float,
    solver: Solver,
    steps: int,
    *,
    grid: str = "log_snr",
    levels: tuple[float, float] | None = None,
) -> Move:
    r"""Up to a noisy level at no cost, where chains mix, and down again along a solver.

    .. math:: x' = \Phi\big(x + \sqrt{h^2 - \sigma^2}\, z;\ h \to \sigma'\big)

    Noise added is exact, and the way down as exact as the solver: both leave the marginals as they
    should be. So the chain can stay at a level from which little is left to denoise, and yet forget
    where it was as fast as at the level ``h``. It returns to its level, ``sigma' = sigma``; with
    ``levels``, to one drawn evenly in ``log sigma`` between the two: a move of data and level at
    once, after which the level is known and need not be told from the data. A state above ``h``
    stays there.

    Args:
        high: The level ``h``.
        solver: Any solver for ``schedules.EDM``.
        steps: Its steps down.
        grid: One of ``timesteps.GRIDS``.
        levels: Lowest and highest level to come down to; None for that of the state.

    Raises:
        ValueError: ``high`` is not above 0 and all levels, or no step at all.
    """
    if not high > 0 or steps < 1:
        raise ValueError(f"excursion: need high > 0 and steps >= 1, got high={high}, steps={steps}")
    if levels is not None and not 0 < levels[0] <= levels[1] < high:
        raise ValueError(f"excursion: need 0 < low <= high < {high} of levels, got {levels}")

    def step(key, predict, state):
        x, sigma = state
        # From just above, a step down of no length instead of one that a solver cannot take.
        top = jnp.maximum(high, sigma * (1 + 1e-3))
        noise = normal(fold_in(key, 0), x.shape, x.dtype)
        x = (x + expand(jnp.sqrt(top**2 - sigma**2), x) * noise).astype(x.dtype)
        end = sigma
        if levels is not None:
            low, width = jnp.log(levels[0]), jnp.log(levels[1] / levels[0])
            end = jnp.exp(low + width * _uniform(fold_in(key, 2), sigma)).astype(sigma.dtype)
        ts = timesteps.GRIDS[grid](EDM(), steps, t_start=top, t_end=end)
        x_next = solve(solver, predict, x, ts, fold_in(key, 1)).x
        return ChainState(x_next, end), jnp.ones_like(sigma)

    return Move(step, evaluations=steps * solver.evaluations)


def blackjax_move(make: Callable[[Callable], Any], log_density: LogDensity) -> Move:
    """A step of any BlackJAX kernel that takes a log-density, each chain at its own level.

    The kernel starts afresh from every state, as the level may have changed. Where ``log_density``
    is known in closed form, no network is called.

    Args:
        make: ``logdensity_fn -> SamplingAlgorithm``, as in
            ``lambda f: blackjax.nuts(f, step_size=0.3, inverse_mass_matrix=jnp.ones(2))``.
        log_density: ``(x, sigma) -> log p_sigma(x)``, ``(chains,)``.
    """

    def single(key, x, sigma):
        algorithm = make(lambda position: log_density(position[None], sigma[None])[0])
        state, info = algorithm.step(key, algorithm.init(x))
        return state.position, jnp.asarray(getattr(info, "acceptance_rate", 1.0), sigma.dtype)

    def step(key, predict, state):
        del predict
        x, acceptance = jax.vmap(single)(_per_chain(key, state.sigma), *state)
        return ChainState(x.astype(state.x.dtype), state.sigma), acceptance

    return Move(step)


def blackjax_gradient_move(make: Callable[[Callable], Any], step_size: StepSize) -> Move:
    """A step of a BlackJAX kernel that takes a gradient, such as ``blackjax.sgld``.

    The gradient is the network's score; all chains are one position, so a kernel that keeps a
    temperature or the like shares it among them. One network call.

    Args:
        make: ``grad_estimator -> SamplingAlgorithm``; ``blackjax.sgld`` itself will do.
        step_size: BlackJAX's, which for ``sgld`` is ``eta / 2``; or a function of ``sigma``.

    Raises:
        ValueError: ``step_size`` is a number that is not above 0.
    """
    size = _step_size(step_size)

    def step(key, predict, state):
        x, sigma = state
        algorithm = make(lambda position, _: score(predict, position, sigma))
        single = key if not key.ndim else key[0]
        x_next = algorithm.step(single, algorithm.init(x), None, expand(size(sigma), x))
        return ChainState(x_next.astype(x.dtype), sigma), jnp.ones_like(sigma)

    return Move(step, evaluations=1)


def _step_size(eta: StepSize) -> Callable[[Array], Array]:
    if callable(eta):
        return eta
    if not eta > 0:
        raise ValueError(f"the step size eta must be above 0, got {eta}")
    return lambda sigma: jnp.full_like(sigma, eta)


def _square(x: Array) -> Array:
    return jnp.sum(jnp.square(x).reshape(x.shape[0], -1), axis=-1)


def _per_chain(key: Key, like: Array) -> Key:
    return key if key.ndim else jax.random.split(key, like.shape[0])


def _uniform(key: Key, like: Array) -> Array:
    return jax.vmap(lambda k: jax.random.uniform(k, (), like.dtype))(_per_chain(key, like))
