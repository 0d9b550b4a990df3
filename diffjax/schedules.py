r"""Forward processes: ``x_t = alpha_t x_0 + sigma_t eps``.

A schedule gives ``alpha(t)`` and ``sigma(t)`` for ``t`` from 0 (data) to ``t_max`` (noise), and
``time``, the inverse of the half log signal-to-noise ratio ``lambda_t = log(alpha_t / sigma_t)``.
Everything else follows from those and is derived once, by the free functions at the end.

All schedules are frozen dataclasses and pytrees (their numbers are leaves), so they pass through
``jit``, ``vmap`` and ``grad``. Times are scalars ``()`` or per sample ``(batch,)``. The formulas
are arranged to hold in float32 over the whole range: no ``1 - alpha**2`` is ever formed.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.random import normal
from diffjax.typing import Array, Key

__all__ = [
    "EDM",
    "VE",
    "Cosine",
    "Discrete",
    "FlowMatching",
    "Schedule",
    "SubVP",
    "VPLinear",
    "diffusion_squared",
    "drift",
    "expand",
    "half_log_snr",
    "perturb",
    "prior",
    "rates",
]


@runtime_checkable
class Schedule(Protocol):
    """The forward process ``x_t = alpha_t x_0 + sigma_t eps``.

    ``[t_min, t_max]`` is the range in which training draws times and sampling visits them.
    """

    t_min: float
    t_max: float

    def alpha(self, t: Array) -> Array:
        """Signal scale at ``t``, of ``t``'s shape."""
        ...

    def sigma(self, t: Array) -> Array:
        """Noise scale (a standard deviation) at ``t``, of ``t``'s shape."""
        ...

    def time(self, half_log_snr: Array) -> Array:
        """The ``t`` at which ``log(alpha_t / sigma_t)`` takes the given value."""
        ...


def pytree_dataclass(cls):
    """Makes ``cls`` a frozen dataclass and a pytree whose leaves are its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def _float(t: Array) -> Array:
    return jnp.asarray(t, jnp.result_type(t, float))


class _VariancePreserving:
    """``sigma^2 = 1 - alpha^2``, in terms of ``log alpha``."""

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


@pytree_dataclass
class VPLinear(_VariancePreserving):
    r"""Variance preserving, with a rate that grows linearly in time.

    .. math:: \log\alpha_t = -t^2 (\beta_1 - \beta_0)/4 - t \beta_0/2, \quad
              \sigma_t^2 = 1 - \alpha_t^2

    Song et al. 2021, eq. (33); the continuous limit of DDPM's linear chain.

    Attributes:
        beta_min: Rate at ``t = 0``.
        beta_max: Rate at ``t = 1``.
        t_min: Smallest time used (1e-3, the end of sampling in Song et al. 2021).
        t_max: Largest time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def log_alpha(self, t: Array) -> Array:
        t = _float(t)
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def time(self, half_log_snr: Array) -> Array:
        return _linear_rate_time(
            0.5 * jnp.logaddexp(-2 * half_log_snr, 0.0), self.beta_min, self.beta_max
        )


@pytree_dataclass
class SubVP:
    r"""Sub-variance-preserving: VP's signal, with ``sigma = 1 - alpha^2`` (no square root).

    Song et al. 2021, eq. (35).

    Attributes:
        beta_min: Rate at ``t = 0``.
        beta_max: Rate at ``t = 1``.
        t_min: Smallest time used.
        t_max: Largest time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def log_alpha(self, t: Array) -> Array:
        return VPLinear.log_alpha(self, t)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(2 * self.log_alpha(t))

    def time(self, half_log_snr: Array) -> Array:
        # alpha / sigma = 1 / (2 sinh(-log alpha)).
        return _linear_rate_time(
            jnp.arcsinh(0.5 * jnp.exp(-half_log_snr)), self.beta_min, self.beta_max
        )


def _linear_rate_time(minus_log_alpha: Array, beta_min: Array, beta_max: Array) -> Array:
    """Root of ``t^2 (b1 - b0)/4 + t b0/2 = -log alpha``, in the form that does not cancel."""
    c = 4 * (beta_max - beta_min) * minus_log_alpha
    return 4 * minus_log_alpha / (jnp.sqrt(beta_min**2 + c) + beta_min)


@pytree_dataclass
class Cosine(_VariancePreserving):
    r"""Variance preserving, cosine shaped.

    .. math:: \alpha_t = \cos\!\Big(\frac\pi2 \frac{t + s}{1 + s}\Big) \Big/
                         \cos\!\Big(\frac\pi2 \frac{s}{1 + s}\Big)

    Nichol & Dhariwal 2021, eq. (17), in continuous time; ``t_max`` stops short of the zero of
    ``alpha`` as in Lu et al. 2022.

    Attributes:
        s: Offset that keeps the noise of the first steps from being too small.
        t_min: Smallest time used.
        t_max: Largest time.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def _angles(self, t: Array) -> tuple[Array, Array]:
        """The angle at time 0, and how far the angle at ``t`` has moved from it."""
        quarter = jnp.pi / 2 / (1 + self.s)
        return quarter * self.s, quarter * _float(t)

    def alpha(self, t: Array) -> Array:
        # The complement of the angle keeps its precision where the cosine vanishes.
        start, _ = self._angles(t)
        return jnp.sin(jnp.pi / 2 / (1 + self.s) * (1 - _float(t))) / jnp.cos(start)

    def sigma(self, t: Array) -> Array:
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a).
        start, moved = self._angles(t)
        return jnp.sqrt(jnp.sin(moved) * jnp.sin(2 * start + moved)) / jnp.cos(start)

    def time(self, half_log_snr: Array) -> Array:
        # Sine and cosine of the angle at t, then of its distance from the angle at 0: every term
        # is a sum of positive parts, so nothing cancels at either end.
        start, _ = self._angles(0.0)
        sigma_cos0 = jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr)) * jnp.cos(start)
        cos = jnp.sqrt(jax.nn.sigmoid(2 * half_log_snr)) * jnp.cos(start)
        sin = jnp.hypot(jnp.sin(start), sigma_cos0)
        sin_moved = sigma_cos0**2 / (sin * jnp.cos(start) + cos * jnp.sin(start))
        cos_moved = cos * jnp.cos(start) + sin * jnp.sin(start)
        return jnp.arctan2(sin_moved, cos_moved) * (1 + self.s) * 2 / jnp.pi


@pytree_dataclass
class VE:
    r"""Variance exploding, geometric: ``alpha = 1``, ``sigma_t = s_min (s_max / s_min)^t``.

    Song et al. 2021, eq. (30). The range belongs to the range of the data: 0.01 to 50 is for
    CIFAR-10 in [0, 1]; data in [-1, 1] needs twice that.

    Attributes:
        sigma_min: Noise at ``t = 0``.
        sigma_max: Noise at ``t = 1``.
        t_min: Smallest time used.
        t_max: Largest time.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(_float(t))

    def sigma(self, t: Array) -> Array:
        t = _float(t)
        return self.sigma_min * jnp.exp(t * jnp.log(self.sigma_max / self.sigma_min))

    def time(self, half_log_snr: Array) -> Array:
        return -(half_log_snr + jnp.log(self.sigma_min)) / jnp.log(self.sigma_max / self.sigma_min)


@pytree_dataclass
class EDM:
    r"""Time is the noise level: ``alpha = 1``, ``sigma_t = t``.

    Karras et al. 2022, table 1.

    Attributes:
        t_min: Smallest noise level used.
        t_max: Largest noise level.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(_float(t))

    def sigma(self, t: Array) -> Array:
        return _float(t)

    def time(self, half_log_snr: Array) -> Array:
        return jnp.exp(-half_log_snr)


@pytree_dataclass
class FlowMatching:
    r"""The straight path between data and noise: ``alpha_t = 1 - t``, ``sigma_t = t``.

    Lipman et al. 2023; Liu et al. 2023 (rectified flow). The range stops short of both ends,
    where the signal-to-noise ratio is infinite or zero.

    Attributes:
        t_min: Smallest time used.
        t_max: Largest time.
    """

    t_min: float = 1e-3
    t_max: float = 1 - 1e-3

    def alpha(self, t: Array) -> Array:
        return 1 - _float(t)

    def sigma(self, t: Array) -> Array:
        return _float(t)

    def time(self, half_log_snr: Array) -> Array:
        return jax.nn.sigmoid(-half_log_snr)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Discrete(_VariancePreserving):
    r"""A DDPM chain of ``N`` steps, continuous in between.

    .. math:: \log\alpha_{t_i} = \tfrac12 \sum_{j \le i} \log(1 - \beta_j), \quad t_i = (i + 1)/N

    Index ``i = 0..N-1`` is what a network trained on the chain was fed (:meth:`index`). Between
    the nodes ``log alpha`` is linear in ``t`` (Lu et al. 2022, "type 1"), and ``t = 0`` is the data
    itself, ``alpha = 1``. The table is summed in float64 whatever the precision in use.

    Attributes:
        betas: Variances of the forward steps, shape ``(N,)``, each in (0, 1).
        log_alphas: ``log alpha`` at ``t = 0, 1/N, ..., 1``, shape ``(N + 1,)``.
    """

    betas: Array
    log_alphas: Array

    def __init__(self, betas: Array):
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                f"Discrete: betas must be a vector of numbers in (0, 1), got shape {betas.shape}"
                + (f" and range [{betas.min():g}, {betas.max():g}]" if betas.size else "")
            )
        object.__setattr__(self, "betas", betas)
        log_alphas = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        object.__setattr__(self, "log_alphas", log_alphas)

    def tree_flatten(self):
        """Leaves of the pytree: the betas, and the table summed from them in float64."""
        return (self.betas, self.log_alphas), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        """The inverse of :meth:`tree_flatten`; recomputes nothing, so that leaves may be traced."""
        self = object.__new__(cls)
        object.__setattr__(self, "betas", leaves[0])
        object.__setattr__(self, "log_alphas", leaves[1])
        return self

    @classmethod
    def linear(cls, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02):
        """DDPM's chain: betas evenly spaced, end points included (Ho et al. 2020)."""
        return cls(np.linspace(beta_min, beta_max, steps, dtype=np.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, beta_min: float = 8.5e-4, beta_max: float = 0.012):
        """Stable Diffusion's chain: the roots of the betas evenly spaced (Rombach et al. 2022)."""
        return cls(np.linspace(beta_min**0.5, beta_max**0.5, steps) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, beta_max: float = 0.999):
        """Improved DDPM's chain: ``beta_i = min(1 - abar_{i+1} / abar_i, beta_max)``, eq. (17)."""
        abar = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
        return cls(np.minimum(1 - abar[1:] / abar[:-1], beta_max))

    @property
    def steps(self) -> int:
        """Length of the chain, ``N``."""
        return self.betas.shape[0]

    @property
    def t_min(self) -> float:
        """Time of index 0."""
        return 1 / self.steps

    @property
    def t_max(self) -> float:
        """Time of index ``N - 1``."""
        return 1.0

    def index(self, t: Array) -> Array:
        """The network's time input ``N t - 1``: 0 at ``t_min``, ``N - 1`` at 1; real in between."""
        return jnp.maximum(self.steps * _float(t) - 1, 0)

    def log_alpha(self, t: Array) -> Array:
        t = _float(t)
        nodes = np.linspace(0.0, 1.0, self.steps + 1).astype(t.dtype)
        return jnp.interp(t, nodes, jnp.asarray(self.log_alphas, t.dtype), right="extrapolate")

    def time(self, half_log_snr: Array) -> Array:
        log_alpha = -0.5 * jnp.logaddexp(-2 * _float(half_log_snr), 0.0)
        dtype = log_alpha.dtype
        nodes = np.linspace(1.0, 0.0, self.steps + 1).astype(dtype)
        table = jnp.asarray(self.log_alphas, dtype)[::-1]
        return jnp.interp(log_alpha, table, nodes, left="extrapolate")


def half_log_snr(schedule: Schedule, t: Array) -> Array:
    """``lambda_t = log(alpha_t / sigma_t)``, half the log signal-to-noise ratio."""
    return jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t))


def rates(schedule: Schedule, t: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """``(alpha, sigma)`` and their time derivatives, each of ``t``'s shape."""
    t = _float(t)
    return jax.jvp(lambda t: (schedule.alpha(t), schedule.sigma(t)), (t,), (jnp.ones_like(t),))


def drift(schedule: Schedule, t: Array) -> Array:
    """``f(t) = d log alpha / dt`` of the forward SDE ``dx = f(t) x dt + g(t) dw``."""
    (alpha, _), (alpha_rate, _) = rates(schedule, t)
    return alpha_rate / alpha


def diffusion_squared(schedule: Schedule, t: Array) -> Array:
    """``g(t)^2 = d sigma^2/dt - 2 f sigma^2`` of the forward SDE ``dx = f(t) x dt + g(t) dw``.

    Written as ``2 sigma (sigma' - sigma alpha'/alpha)``, two terms of one sign.
    """
    (alpha, sigma), (alpha_rate, sigma_rate) = rates(schedule, t)
    return 2 * sigma * (sigma_rate - sigma * alpha_rate / alpha)


def expand(value: Array, x: Array) -> Array:
    """Shapes a scalar, per-sample ``(batch,)`` or full-rank ``value`` to broadcast against ``x``.

    Raises:
        ValueError: ``value`` has another rank, or another batch size than ``x``.
    """
    value = jnp.asarray(value)
    if value.ndim in (0, x.ndim):
        return value
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"a time of shape {value.shape} does not fit x of shape {x.shape}: "
            f"give a scalar or one per sample, shape {x.shape[:1]}"
        )
    return value.reshape(value.shape + (1,) * (x.ndim - 1))


def perturb(schedule: Schedule, x0: Array, t: Array, noise: Array) -> Array:
    """``x_t = alpha_t x_0 + sigma_t noise``, with ``t`` a scalar or one per sample."""
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise


def prior(
    schedule: Schedule,
    t: Array,
    shape: tuple[int, ...],
    key: Key,
    *,
    mean: Array = 0.0,
    std: Array = 0.0,
) -> Array:
    r"""Draws the state from which sampling starts at any ``t``.

    .. math:: x_t = \alpha_t \mu + \sqrt{\alpha_t^2 s^2 + \sigma_t^2}\, \epsilon

    The defaults give N(0, sigma_t^2), the usual prior at ``t_max``. When sampling starts earlier
    the data still shows through: give its mean and standard deviation and the first two moments
    are those of the true marginal.

    Args:
        schedule: The forward process.
        t: Time at which sampling starts, scalar or ``(batch,)``.
        shape: Shape of the result, ``(batch, ...)``.
        key: A key, or one per sample ``(batch,)`` so that sample ``i`` depends on key ``i`` alone.
        mean: Mean of the data, broadcast against ``shape``.
        std: Standard deviation of the data, broadcast against ``shape``.

    Returns:
        Noise of the given shape.
    """
    noise = normal(key, shape)
    alpha, sigma = (expand(value, noise) for value in (schedule.alpha(t), schedule.sigma(t)))
    return alpha * mean + jnp.sqrt((alpha * std) ** 2 + sigma**2) * noise
