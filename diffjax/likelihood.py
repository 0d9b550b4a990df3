r"""Likelihoods: exact by the probability-flow ODE, bounded by the discrete chain.

:func:`log_density` is that of continuous data, in nats; spread integers over their bins with
:func:`dequantise` and read the result with ``metrics.density_bits_per_dim`` and the same bin width.
:func:`variational_bound` is that of integers in [-1, 1] themselves, in bits per dimension; its
terms one by one, for losses, are :func:`bound_term`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.prediction import Predict, Prediction, evaluations
from diffjax.random import fold_in, normal
from diffjax.schedules import Discrete, Schedule, expand, half_log_snr, perturb
from diffjax.solvers.ode import integrate, noise_field
from diffjax.solvers.transition import Transition
from diffjax.typing import Array, Key

__all__ = [
    "PROBES",
    "VARIANCES",
    "Bound",
    "Chain",
    "LogDensity",
    "bound_term",
    "chain",
    "decoder_log_probability",
    "dequantise",
    "log_density",
    "variational_bound",
]

PROBES = ("exact", "rademacher", "gaussian")
VARIANCES = ("small", "large", "learned")


class LogDensity(NamedTuple):
    """What :func:`log_density` returns.

    Attributes:
        nats: ``log p(x)``, ``(batch,)``.
        latent: Where the ODE takes ``x``, of its shape.
        nfe: Network evaluations per sample, ``()``; each with its derivative along the probe, or
            with ``exact`` along every dimension.
    """

    nats: Array
    latent: Array
    nfe: Array


def log_density(
    schedule: Schedule,
    predict: Predict,
    x: Array,
    key: Key | None = None,
    *,
    probe: str = "rademacher",
    t_start: float | None = None,
    log_prior=None,
    method: str = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> LogDensity:
    r"""Density of data under the probability-flow ODE.

    .. math:: \log p(x) = \log p_T(x_T) + D \log\frac{\alpha_T}{\alpha_0}
              + \int_{\lambda_0}^{\lambda_T} \nabla_y \cdot \frac{dy}{d\lambda}\, d\lambda,
              \quad y = x/\alpha

    from ``t_start``, at which ``x`` is taken to be, to the schedule's ``t_max``. Song et al. 2021
    (arXiv 2011.13456), section 4.3 and appendix D.2; Hutchinson's estimate of the divergence with
    one probe a sample, the same along the whole path, as in Grathwohl et al. 2019. For several
    probes map over keys.

    Args:
        schedule: The forward process.
        predict: The network seen through its schedule.
        x: Data, ``(batch, ...)``.
        key: For the probes: one key, or one per sample ``(batch,)``; ``exact`` needs none.
        probe: ``'rademacher'``, ``'gaussian'``, or ``'exact'`` for the divergence itself.
        t_start: Time of ``x``, a scalar; the schedule's ``t_min`` if not given.
        log_prior: ``x_T -> log p_T(x_T)``, ``(batch,)``; that of :func:`diffjax.schedules.prior`,
            ``N(0, sigma_T^2)``, if not given.
        method: One of ``solvers.ode.METHODS``.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        ValueError: An unknown probe or method, or no key for a probe.
    """
    if probe not in PROBES:
        raise ValueError(f"unknown probe {probe!r}: choose one of {', '.join(PROBES)}")
    if probe != "exact" and key is None:
        raise ValueError(f"log_density: the probe {probe!r} is random: give a key")
    vector = None if probe == "exact" else normal(key, x.shape, x.dtype)
    if probe == "rademacher":
        vector = jnp.where(vector < 0, -jnp.ones_like(x), jnp.ones_like(x))
    dimensions = math.prod(x.shape[1:])

    def rate(lam: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def field(y: Array) -> Array:
            return noise_field(schedule, predict, lam, y)

        return _with_divergence(field, state[0], vector)

    ends = schedule.t_min if t_start is None else t_start, schedule.t_max
    alpha_start, alpha_end = (schedule.alpha(t) for t in ends)
    (y, gained), _, calls = integrate(
        rate,
        (x / alpha_start, jnp.zeros_like(x, shape=x.shape[:1])),
        *(half_log_snr(schedule, t) for t in ends),
        method=method,
        rtol=rtol,
        atol=atol,
    )
    latent = (alpha_end * y).astype(x.dtype)
    if log_prior is None:
        prior = _normal_log_density(latent, schedule.sigma(ends[1]))
    else:
        prior = log_prior(latent)
    nats = prior + gained + dimensions * (jnp.log(alpha_end) - jnp.log(alpha_start))
    return LogDensity(nats, latent, calls * evaluations(predict))


def _with_divergence(field, x: Array, vector: Array | None) -> tuple[Array, Array]:
    """``field(x)`` and its divergence by sample, estimated with a probe or exact without one."""
    axes = tuple(range(1, x.ndim))
    if vector is not None:
        value, product = jax.jvp(field, (x,), (vector,))
        return value, jnp.sum(vector * product, axis=axes)
    value, along = jax.linearize(field, x)

    def diagonal(index: Array) -> Array:
        unit = jnp.zeros(math.prod(x.shape[1:]), x.dtype).at[index].set(1).reshape(x.shape[1:])
        return jnp.sum(along(jnp.broadcast_to(unit, x.shape)) * unit, axis=axes)

    each = jax.lax.map(diagonal, jnp.arange(math.prod(x.shape[1:])), batch_size=64)
    return value, each.sum(axis=0)


def _normal_log_density(x: Array, std: Array) -> Array:
    flat = x.reshape(x.shape[0], -1) / std
    return -0.5 * jnp.sum(jnp.square(flat) + jnp.log(2 * jnp.pi * std**2), axis=-1)


def dequantise(key: Key, x: Array, bin_width: float) -> Array:
    """Spreads values evenly over their bins, ``x + (u - 1/2) bin_width`` with ``u ~ U[0, 1)``.

    Args:
        key: One key, or one per sample ``(batch,)``.
        x: The centres of bins, ``(batch, ...)``: bytes ``n`` as ``n / 127.5 - 1`` (width 2/255), or
            as the papers have them ``2 (n + 1/2) / 256 - 1`` (2/256), ``(n + 1/2) / 256`` (1/256).
        bin_width: Distance of neighbouring centres.
    """
    if key.ndim:
        return jax.vmap(lambda k, row: dequantise(k, row, bin_width))(key, x)
    return x + bin_width * jax.random.uniform(key, x.shape, x.dtype, -0.5, 0.5)


class Chain(NamedTuple):
    """The steps of a reverse chain; entry 0 is the step to the data.

    Attributes:
        t: Times from which the steps are taken, ascending, ``(steps,)``.
        over: Scales at both ends of the steps, ``(steps,)`` each.
    """

    t: Array
    over: Transition

    @property
    def log_large(self) -> Array:
        """Logarithms of the forward variances (of beta)."""
        return jnp.log(self.over.large_variance)

    @property
    def log_small(self) -> Array:
        """Logarithms of the posterior variances (of beta tilde); entry 0 is that of entry 1."""
        variance = self.over.small_variance
        return jnp.log(variance.at[0].set(variance[1]))

    @property
    def x0_weight(self) -> Array:
        """Weight of ``x_0`` in the posterior mean."""
        return self.over.posterior_mean(0.0, 1.0)

    @property
    def x_weight(self) -> Array:
        """Weight of ``x_t`` in the posterior mean."""
        return self.over.posterior_mean(1.0, 0.0)


def chain(schedule: Schedule, ts: Array | None = None) -> Chain:
    """The chain that steps along ``ts``, or along all nodes of a discrete schedule.

    Args:
        schedule: The forward process.
        ts: Decreasing times ``(steps + 1,)``, at least three, that end at 0; for a respaced chain
            ``timesteps.respaced`` with 0 appended. None for all of a ``Discrete`` schedule.

    Raises:
        ValueError: There are too few times, they do not end at no noise, or are missing.
    """
    if ts is None:
        if not isinstance(schedule, Discrete):
            raise ValueError(
                f"{type(schedule).__name__} is no discrete chain and has no steps of its own: give "
                "ts, or use a Discrete schedule"
            )
        ts = np.arange(schedule.steps, -1, -1) / schedule.steps
    ts = jnp.asarray(ts)
    if ts.ndim != 1 or len(ts) < 3:
        raise ValueError(f"a chain has at least 2 steps, ts of shape (3,), not {ts.shape}")
    if not isinstance(ts, jax.core.Tracer) and not (ts[-1] == 0 and schedule.sigma(ts[-1]) == 0):
        raise ValueError(
            f"the bound needs a chain that ends at the data: ts ends at {ts[-1]}, where sigma is "
            f"{schedule.sigma(ts[-1])}; append 0, and use a schedule without noise there"
        )
    t, t_next = ts[-2::-1], ts[:0:-1]
    scales = (scale(at) for at in (t, t_next) for scale in (schedule.alpha, schedule.sigma))
    return Chain(t, Transition(*scales))


class Bound(NamedTuple):
    """A variational bound and its parts, in bits per dimension.

    Attributes:
        total: The bound, ``(batch,)``.
        prior: What the latent costs, ``(batch,)``.
        terms: What each step costs, ``(batch, steps)``; entry 0 is the decoder's.
        x0_error: Mean squared error of ``x0`` at each step, ``(batch, steps)``.
        eps_error: Mean squared error of ``eps`` at each step, ``(batch, steps)``.
    """

    total: Array
    prior: Array
    terms: Array
    x0_error: Array
    eps_error: Array


def variational_bound(
    schedule: Schedule,
    predict: Predict,
    x0: Array,
    key: Key,
    ts: Array | None = None,
    *,
    variance: str = "small",
    levels: int = 256,
) -> Bound:
    r"""Upper bound on the bits per dimension of integer data.

    .. math:: L = KL(q(x_T|x_0)\,\|\,p(x_T)) + \sum_{k \ge 1} KL(q(x_s|x_t, x_0)\,\|\,p(x_s|x_t))
              - \log p(x_0|x_1)

    with fresh noise at every step, an unbiased estimate. One network call a step. Ho et al. 2020,
    eq. (5); Nichol & Dhariwal 2021. As published, ``predict`` clips ``x0``
    (``guidance.threshold``). The prior is ``N(0, sigma_T^2)``, from which sampling starts.

    Args:
        schedule: The forward process.
        predict: The network seen through its schedule.
        x0: Integers as ``2 n / (levels - 1) - 1``, ``(batch, ...)``.
        key: For the noise: one key, or one per sample ``(batch,)``.
        ts: As for :func:`chain`.
        variance: As for :func:`bound_term`.
        levels: How many integers there are.

    Raises:
        ValueError: As for :func:`chain` and :func:`bound_term`.
    """
    steps = chain(schedule, ts)

    def part(_, k: Array):
        t = steps.t[k]
        noise = normal(fold_in(key, k), x0.shape, x0.dtype)
        prediction = predict(perturb(schedule, x0, t, noise).astype(x0.dtype), t)
        term = bound_term(steps, prediction, x0, k, variance=variance, levels=levels)
        errors = prediction.x0 - x0, prediction.eps - noise
        return None, (term, *(_mean(jnp.square(error)) for error in errors))

    _, parts = jax.lax.scan(part, None, jnp.arange(len(steps.t)))
    terms, x0_error, eps_error = (jnp.moveaxis(values, 0, 1) for values in parts)
    ratio = steps.over.alpha[-1] / steps.over.sigma[-1]
    prior = 0.5 * _mean(jnp.square(ratio * x0)) / math.log(2)
    return Bound(terms.sum(axis=1) + prior, prior, terms, x0_error, eps_error)


def bound_term(
    chain: Chain,
    prediction: Prediction,
    x0: Array,
    k: Array,
    *,
    variance: str = "small",
    levels: int = 256,
) -> Array:
    r"""One term of the bound: the divergence of step ``k``, or at 0 the cost of the data.

    .. math:: KL = \tfrac12\Big[\log\frac{v}{\tilde\beta} - 1 + \frac{\tilde\beta}{v}
              + \frac{c^2 (x_0 - \hat x_0)^2}{v}\Big]

    with ``c`` the weight of ``x_0`` in the posterior mean and ``v`` the model's variance. At step 0
    the fixed ones are both ``beta tilde`` of step 1, as published.

    Args:
        chain: The steps.
        prediction: At ``x_t`` and ``t = chain.t[k]``.
        x0: The data, ``(batch, ...)``.
        k: Index of the step, ``()`` or ``(batch,)``.
        variance: ``'small'`` (beta tilde), ``'large'`` (beta) or ``'learned'`` (the prediction's).
        levels: Number of integers that the data may take.

    Returns:
        Bits per dimension, ``(batch,)``.

    Raises:
        ValueError: Another variance, or ``learned`` with a prediction that has none.
    """
    small, large, weight = (
        expand(table[k], x0) for table in (chain.log_small, chain.log_large, chain.x0_weight)
    )
    if variance == "learned":
        if prediction.variance is None:
            raise ValueError(
                "variance='learned' needs a network with learned variances; use 'small' or 'large'"
            )
        log_variance = prediction.variance * large + (1 - prediction.variance) * small
    elif variance == "large":
        log_variance = jnp.where(expand(jnp.asarray(k) == 0, x0), small, large)
    elif variance == "small":
        log_variance = small
    else:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")
    surplus = small - log_variance
    apart = jnp.square(weight * (x0 - prediction.x0)) * jnp.exp(-log_variance)
    divergence = 0.5 * (jnp.expm1(surplus) - surplus + apart)
    decoder = -decoder_log_probability(x0, prediction.x0, log_variance / 2, levels=levels)
    return _mean(jnp.where(expand(jnp.asarray(k) == 0, x0), decoder, divergence)) / math.log(2)


def decoder_log_probability(x0: Array, mean: Array, log_std: Array, *, levels: int = 256) -> Array:
    r"""Log-probability of integers under a normal distribution cut into bins.

    .. math:: \Phi\Big(\frac{x_0 + h - \mu}{s}\Big) - \Phi\Big(\frac{x_0 - h - \mu}{s}\Big), \quad
              h = \frac{1}{K - 1}

    The outermost bins reach to infinity. ``Phi`` is the published approximation, a logistic
    function of a cubic, and a probability is at least 1e-12. Ho et al. 2020, eq. (13).

    Args:
        x0: Integers as ``2 n / (levels - 1) - 1``.
        mean: Of the distribution, of ``x0``'s shape.
        log_std: Logarithm of its standard deviation.
        levels: ``K``, how many integers there are.

    Returns:
        Nats, of ``x0``'s shape.
    """
    half = 1 / (levels - 1)
    upper, lower = (_logit_of_phi((x0 + h - mean) * jnp.exp(-log_std)) for h in (half, -half))
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^{l - u}), which does not cancel.
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    gap = jnp.maximum(upper - lower, jnp.finfo(upper.dtype).tiny)
    inside = below + above + jnp.log(-jnp.expm1(-gap))
    chosen = jnp.where(x0 < -0.999, below, jnp.where(x0 > 0.999, above, inside))
    return jnp.maximum(chosen, math.log(1e-12))


def _logit_of_phi(z: Array) -> Array:
    """``Phi(z)`` is about ``sigmoid`` of this, to 2e-4."""
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _mean(values: Array) -> Array:
    return values.mean(axis=tuple(range(1, values.ndim)))
