r"""Exponential integrators in half log SNR: what DPM-Solver, UniPC and DEIS are made of.

With ``lambda`` as time, the linear part of the probability-flow ODE integrates exactly. What is
left is an exponentially weighted integral of the prediction ``m``, either ``x0`` or ``eps``: for a
step of length ``h`` from ``lambda`` and ``m`` a polynomial in ``u``, ``m(lambda + u h)``,

.. math:: x_s = C x_t + A \int_0^1 h e^{\pm(u - 1) h} m(u)\, du

A method evaluates ``m`` at some nodes ``u_j`` and takes the polynomial through them, so a step is
``x_s = C x_t + A sum_j w_j m_j``, where the weights give powers of ``u`` their exact *moments*:

.. math:: \sum_j w_j u_j^n = \mu_n, \quad \mu_n = n!\, h\, \varphi_{n+1}(\mp h)

Every member of the family is a choice of nodes and of moments; the published ones that are not the
exact moments have their own functions in the files of their methods.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.prediction import Prediction
from diffjax.schedules import Schedule
from diffjax.solvers import timesteps
from diffjax.solvers.transition import Transition
from diffjax.typing import Array

__all__ = [
    "EPS",
    "X0",
    "Expansion",
    "Steps",
    "expansion",
    "moments",
    "phis",
    "plan_steps",
    "weights",
]


class Expansion(NamedTuple):
    """Which prediction is expanded, and the linear part that belongs to it.

    Attributes:
        name: ``'x0'`` (DPM-Solver++) or ``'eps'`` (DPM-Solver).
        quantity: ``Prediction -> m``.
        sign: Of ``h`` in the exponential: -1 for ``x0``, 1 for ``eps``.
    """

    name: str
    quantity: Callable[[Prediction], Array]
    sign: int

    def linear(self, over: Transition) -> tuple[Array, Array]:
        """``C`` and ``A q_1``: the weights of ``x`` and of a constant ``m``.

        No logarithm is taken, so that they are exact, and finite on a step to no noise.
        """
        if self.name == "x0":
            decay = over.sigma_next / over.sigma
            return decay, over.alpha_next - decay * over.alpha
        growth = over.alpha_next / over.alpha
        return growth, over.sigma_next - growth * over.sigma


X0 = Expansion("x0", lambda prediction: prediction.x0, -1)
EPS = Expansion("eps", lambda prediction: prediction.eps, 1)


def expansion(name: str) -> Expansion:
    """The expansion of a name.

    Raises:
        ValueError: It is neither ``'x0'`` nor ``'eps'``.
    """
    for known in (X0, EPS):
        if name == known.name:
            return known
    raise ValueError(f"unknown expansion {name!r}: choose 'x0' or 'eps'")


class Steps(NamedTuple):
    """The steps of a grid, all together: every array has the steps first.

    Attributes:
        over: Scales at both ends of each step.
        lam: Half log SNR at every time of the grid, one more than there are steps. Where there is
            no noise at all it is large but finite.
    """

    over: Transition
    lam: Array

    @property
    def h(self) -> Array:
        """Length of each step in half log SNR."""
        return self.lam[1:] - self.lam[:-1]


def plan_steps(schedule: Schedule, ts: Array) -> Steps:
    """The steps of a grid of times, ``(steps + 1,)`` or ``(steps + 1, batch)``.

    Raises:
        ValueError: It leaves the schedule. Values are checked outside ``jit`` only.
    """
    timesteps.check_inside(schedule, ts[0], ts[-1])
    alpha, sigma = jax.vmap(schedule.alpha)(ts), jax.vmap(schedule.sigma)(ts)
    tiny = jnp.finfo(sigma.dtype).tiny
    lam = jnp.log(alpha) - jnp.log(jnp.maximum(sigma, tiny))
    return Steps(Transition(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]), lam)


def phis(count: int, z: Array) -> list[Array]:
    r"""``phi_k(z) = \sum_n z^n / (n + k)!`` for ``k = 1 .. count``: ``phi_1 = expm1(z) / z``, ...

    Downwards from the series of the last near zero, where ``phi_k = (phi_{k-1} - 1/(k-1)!) / z``
    cancels; upwards elsewhere. The relative error is some units of rounding times ``k``.
    """
    # Terms enough for the last to be below rounding in float64 at the edge, |z| = 1.
    near = jnp.abs(z) < 1
    small = jnp.where(near, z, 0.0)
    series = jnp.zeros_like(small)
    for n in reversed(range(19)):
        series = series * small + 1 / math.factorial(n + count)
    large = jnp.where(near, 1.0, z)
    down, up = [series], [jnp.expm1(large) / large]
    for k in range(1, count):
        up.append((up[-1] - 1 / math.factorial(k)) / large)
        down.append(down[-1] * small + 1 / math.factorial(count - k))
    return [jnp.where(near, *pair) for pair in zip(reversed(down), up, strict=True)]


def moments(count: int, h: Array, sign: int) -> list[Array]:
    r"""Exact moments over ``q_1 = h phi_1``: ``n! phi_{n+1}(sign h) / phi_1(sign h)``.

    Relative to the first, because ``A q_1`` is known without rounding (:meth:`Expansion.linear`).
    """
    if count == 1:
        return [jnp.ones_like(h)]
    first, *rest = phis(count, sign * h)
    return [jnp.ones_like(h)] + [
        math.factorial(n) * phi / first for n, phi in enumerate(rest, start=1)
    ]


def weights(nodes: Sequence[Array], values: Sequence[Array]) -> list[Array]:
    r"""Weights that integrate powers exactly: ``\sum_j w_j u_j^n = \mu_n``.

    The solution of the Vandermonde system by its Lagrange polynomials, which needs no pivoting,
    maps over any axes, and keeps gradients finite.

    Args:
        nodes: Distinct ``u_j``, arrays that broadcast.
        values: As many moments ``mu_n``, from ``n = 0``.

    Returns:
        The weights ``w_j``.
    """
    found = []
    for j, node in enumerate(nodes):
        # Coefficients of prod_k (u - u_k) / (u_j - u_k), from the constant term up.
        polynomial = [1.0]
        for k, other in enumerate(nodes):
            if k == j:
                continue
            gap = node - other
            shifted = [0.0, *polynomial]
            polynomial = [
                (shifted[n] - other * (polynomial[n] if n < len(polynomial) else 0.0)) / gap
                for n in range(len(shifted))
            ]
        found.append(sum(c * m for c, m in zip(polynomial, values, strict=True)))
    return found
