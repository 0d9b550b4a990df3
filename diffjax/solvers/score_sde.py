r"""The predictors and correctors of Score-SDE, and their composition.

A *predictor* is a solver of the reverse SDE ``dx = (f x - g^2 score) dt + g dw``. A *corrector* is
a solver that stays where it is: its step is Langevin dynamics at ``span.t``, which leaves the
marginal there as it should be. :func:`predictor_corrector` makes one solver of any two. A corrector
alone, along a grid, is annealed Langevin dynamics.

Predictors add no noise on the last step of a grid. The paper's ancestral sampler is
:func:`~diffjax.solvers.ancestral`: variance ``large`` for its VP, ``small`` for its VE.

Song et al. 2021 (arXiv 2011.13456), appendices E to G.
"""

import jax.numpy as jnp

from diffjax.prediction import to_score
from diffjax.random import fold_in, normal
from diffjax.schedules import Schedule, diffusion_squared, drift, expand
from diffjax.solvers.base import Solver, Span, one_step
from diffjax.solvers.transition import transition
from diffjax.typing import Array, Key

__all__ = [
    "annealed_langevin",
    "euler_maruyama",
    "langevin",
    "predictor_corrector",
    "probability_flow",
    "reverse_diffusion",
]


def euler_maruyama(schedule: Schedule) -> Solver:
    r"""Euler-Maruyama for the reverse SDE, in the schedule's own time.

    .. math:: x_s = x_t - (f x_t - g^2 \nabla\log p_t)\,(t - s) + g \sqrt{t - s}\, z

    No noise on the last step. One network call a step. Song et al. 2021, eq. (6) discretised; the
    time step is the grid's, where the published code has ``1/N`` on a grid of ``N - 1`` intervals.

    Args:
        schedule: The forward process.
    """

    def step(predict, x, span, key):
        score = to_score(schedule, span.t, predict(x, span.t))
        rate, squared = (expand(f(schedule, span.t), x) for f in (drift, diffusion_squared))
        length = expand(span.t - span.t_next, x)
        mean = x - (rate * x - squared * score) * length
        return mean + _noise(squared * length, x, span, key)

    return one_step(step)


def reverse_diffusion(schedule: Schedule) -> Solver:
    r"""The reverse SDE discretised as the forward chain is.

    .. math:: x_s = (2 - a)\, x_t + G^2 \nabla\log p_t + G z, \quad
              a = \alpha_t/\alpha_s, \quad G^2 = \sigma_t^2 - a^2\sigma_s^2

    for the forward step ``x_t = a x_s + G z``. No noise on the last step. One network call a step.
    Song et al. 2021, appendix E, eq. (46).

    Args:
        schedule: The forward process.
    """

    def step(predict, x, span, key):
        over = transition(schedule, span, x)
        score = to_score(schedule, span.t, predict(x, span.t))
        variance = over.large_variance
        mean = (2 - over.alpha / over.alpha_next) * x + variance * score
        return mean + _noise(variance, x, span, key)

    return one_step(step)


def probability_flow(schedule: Schedule) -> Solver:
    r"""The probability-flow ODE discretised as the forward chain is.

    .. math:: x_s = (2 - a)\, x_t + \tfrac12 G^2 \nabla\log p_t

    with ``a`` and ``G^2`` of :func:`reverse_diffusion`. Order 1, the weakest solver of the ODE: of
    interest as the predictor that gains most from a corrector. One network call a step. Song et al.
    2021, appendix E, eq. (47).

    Args:
        schedule: The forward process.
    """

    def step(predict, x, span, key):
        del key
        over = transition(schedule, span, x)
        score = to_score(schedule, span.t, predict(x, span.t))
        return (2 - over.alpha / over.alpha_next) * x + 0.5 * over.large_variance * score

    return one_step(step)


def _noise(variance: Array, x: Array, span: Span, key: Key | None) -> Array:
    """Noise of a variance; none on the last step."""
    std = jnp.sqrt(jnp.where(span.remaining > 1, variance, 0.0))
    return std * normal(key, x.shape, x.dtype)


def langevin(
    schedule: Schedule, snr: float = 0.16, steps: int = 1, *, norms: str = "batch"
) -> Solver:
    r"""Langevin corrector, with steps in proportion to noise and score.

    .. math:: x \leftarrow x + e \nabla\log p_t + \sqrt{2 e}\, z, \quad
              e = 2 a^2 \Big(r \frac{\|z\|}{\|\nabla\log p_t\|}\Big)^2, \quad
              a = \alpha_t/\alpha_s

    ``a^2`` is the published ``1 - beta`` of VP, 1 for VE. For data of many dimensions, whose norms
    vary little; in few, or for each sample by itself, :func:`annealed_langevin` is the better
    choice. Song et al. 2021, algorithms 4 and 5.

    Args:
        schedule: The forward process.
        snr: The signal-to-noise ratio ``r``: 0.16 for CIFAR-10, 0.075 at 256^2, 0.15 at 1024^2.
        steps: Langevin steps, each one network call.
        norms: ``'batch'`` takes their means over the batch, as published, so that a sample depends
            on the others in its batch; ``'sample'`` each sample's own, which spreads samples a
            little too far, the less the more dimensions they have.

    Raises:
        ValueError: Another ``norms``.
    """
    if norms not in ("batch", "sample"):
        raise ValueError(f"langevin: unknown norms {norms!r}: choose 'batch' or 'sample'")

    def norm(value: Array) -> Array:
        per_sample = jnp.linalg.norm(value.reshape(value.shape[0], -1), axis=-1)
        return per_sample if norms == "sample" else per_sample.mean()

    def size(span, x, score, noise):
        return expand((snr * norm(noise) / norm(score)) ** 2, x)

    return _langevin(schedule, steps, size)


def annealed_langevin(schedule: Schedule, snr: float = 0.16, steps: int = 1) -> Solver:
    r"""Langevin corrector with steps in proportion to the noise level.

    .. math:: x \leftarrow x + e \nabla\log p_t + \sqrt{2 e}\, z, \quad e = 2 a^2 (r \sigma_t)^2,
              \quad a = \alpha_t/\alpha_s

    The steps of Song & Ermon 2019, for data of any dimension. Song et al. 2021, appendix G.

    Args:
        schedule: The forward process.
        snr: Step in units of the noise, ``r``.
        steps: Langevin steps, each one network call.
    """

    def size(span, x, score, noise):
        del score, noise
        return expand((snr * schedule.sigma(span.t)) ** 2, x)

    return _langevin(schedule, steps, size)


def _langevin(schedule: Schedule, steps: int, size) -> Solver:
    """Langevin steps of length ``2 a^2 size(span, x, score, noise)``."""
    if steps < 1:
        raise ValueError(f"a corrector needs at least 1 step, got {steps}")

    def step(predict, x, span, key):
        over = transition(schedule, span, x)
        for index in range(steps):
            score = to_score(schedule, span.t, predict(x, span.t))
            noise = normal(_part(key, index), x.shape, x.dtype)
            length = 2 * (over.alpha / over.alpha_next) ** 2 * size(span, x, score, noise)
            x = (x + length * score + jnp.sqrt(2 * length) * noise).astype(x.dtype)
        return x

    return one_step(step, evaluations=steps)


def predictor_corrector(predictor: Solver, corrector: Solver) -> Solver:
    """At every time of the grid the corrector's step, then from there the predictor's.

    Both see the same span. Network calls a step: those of both. Song et al. 2021, algorithm 1, in
    the order of the published samplers.

    Args:
        predictor: Any solver.
        corrector: A solver that stays at ``span.t``, such as :func:`langevin`.
    """

    def init(x):
        return corrector.init(x), predictor.init(x)

    def step(predict, x, memory, span, key):
        memories = []
        for index, part in enumerate((corrector, predictor)):
            own = span._replace(plan=span.plan[index])
            x_next, kept = part.step(predict, x, memory[index], own, _part(key, index))
            x = x_next.astype(x.dtype)
            memories.append(kept)
        return x, tuple(memories)

    return Solver(
        init,
        step,
        corrector.evaluations + predictor.evaluations,
        lambda ts: (corrector.plan(ts), predictor.plan(ts)),
    )


def _part(key: Key | None, index: int) -> Key | None:
    return None if key is None else fold_in(key, index)
