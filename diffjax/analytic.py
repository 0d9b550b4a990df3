"""Distributions whose exact ``predict`` is known: the ground truth for solvers, and a sanity mode.

``Gaussian`` and ``Mixture`` are pytrees with three functions each: ``predict(schedule)``, the exact
:class:`~diffjax.prediction.Predict` of the distribution; ``log_density``, that of its noised
marginal; and ``sample``. A point mass is a mixture of one component without spread, and the
empirical distribution of a data set is a mixture with a component on every example: sampling from
it returns the training data, which tells a faulty sampler from an untrained network.
"""

import jax
import jax.numpy as jnp

from diffjax.prediction import Predict, Prediction
from diffjax.random import normal
from diffjax.schedules import Schedule, pytree_dataclass
from diffjax.typing import Array, Key

__all__ = ["Gaussian", "Mixture", "empirical", "point_mass"]

# Elements of the (samples, components, dimensions) differences held at a time: 64 MiB in float32.
_CHUNK = 2**24


@pytree_dataclass
class Gaussian:
    r"""``N(mean, covariance)`` in ``d`` dimensions, with any covariance.

    With ``C = U diag(w) U^T``,

    .. math:: E[x_0|x_t] = \mu + U \frac{\alpha w}{\alpha^2 w + \sigma^2} U^T (x_t - \alpha\mu),
              \quad E[\epsilon|x_t] = \sigma U \frac{1}{\alpha^2 w + \sigma^2} U^T (x_t - \alpha\mu)

    Attributes:
        mean: Shape ``(d,)``.
        covariance: Symmetric and positive semi-definite, shape ``(d, d)``.
    """

    mean: Array
    covariance: Array

    def _centred(self, schedule: Schedule, x: Array, t: Array):
        """``x - alpha mean`` in eigenvector coordinates, its variances, and the rest needed."""
        variances, basis = jnp.linalg.eigh(jnp.asarray(self.covariance))
        alpha, sigma = (jnp.asarray(v)[..., None] for v in (schedule.alpha(t), schedule.sigma(t)))
        variances = jnp.maximum(variances, 0)
        rotated = (x - alpha * self.mean) @ basis
        return rotated, alpha**2 * variances + sigma**2, variances, basis, alpha, sigma

    def predict(self, schedule: Schedule) -> Predict:
        """The exact ``predict`` for ``x`` of shape ``(batch, d)``."""

        def predict(x: Array, t: Array) -> Prediction:
            rotated, total, variances, basis, alpha, sigma = self._centred(schedule, x, t)
            x0 = self.mean + (alpha * variances / total * rotated) @ basis.T
            return Prediction(x0, (sigma / total * rotated) @ basis.T)

        return predict

    def log_density(self, schedule: Schedule, x: Array, t: Array) -> Array:
        """``log p_t(x)`` in nats, shape ``(batch,)``."""
        rotated, total, *_ = self._centred(schedule, x, t)
        return -0.5 * jnp.sum(rotated**2 / total + jnp.log(2 * jnp.pi * total), axis=-1)

    def sample(self, key: Key, n: int) -> Array:
        """``n`` independent draws, shape ``(n, d)``."""
        variances, basis = jnp.linalg.eigh(jnp.asarray(self.covariance))
        scale = jnp.sqrt(jnp.maximum(variances, 0))
        return self.mean + (scale * normal(key, (n, basis.shape[0]), scale.dtype)) @ basis.T


@pytree_dataclass
class Mixture:
    r"""``sum_k w_k N(mean_k, std_k^2 I)``, over vectors or arrays of any shape.

    With responsibilities ``r_k`` of the noised components ``N(alpha mean_k, total_k I)``,
    ``total_k = alpha^2 std_k^2 + sigma^2``,

    .. math:: E[x_0|x_t] = \sum_k r_k \frac{\alpha s_k^2 x_t + \sigma^2 \mu_k}{total_k}, \quad
              E[\epsilon|x_t] = \sum_k r_k \frac{\sigma (x_t - \alpha\mu_k)}{total_k}

    Attributes:
        means: Shape ``(components, ...)``.
        std: Standard deviation, a scalar or one per component; 0 for points.
        log_weights: Logarithms of the weights, shape ``(components,)``, normalised here; None for
            equal weights.
    """

    means: Array
    std: Array = 0.0
    log_weights: Array | None = None

    def _log_weights(self) -> Array:
        count = jnp.shape(self.means)[0]
        return jax.nn.log_softmax(
            jnp.zeros(count) if self.log_weights is None else jnp.asarray(self.log_weights)
        )

    def _components(self, x: Array, alpha: Array, sigma: Array):
        """Of one flat ``x``: differences, noised variances and joint log densities by component."""
        means = jnp.reshape(self.means, (jnp.shape(self.means)[0], -1))
        std = jnp.broadcast_to(self.std, means.shape[:1])
        difference = x - alpha * means
        total = (alpha * std) ** 2 + sigma**2
        exponent = jnp.sum(difference**2, axis=-1) / total + x.size * jnp.log(2 * jnp.pi * total)
        return difference, std, total, self._log_weights() - 0.5 * exponent

    def _map(self, function, schedule: Schedule, x: Array, t: Array):
        """``function(x_i, alpha_i, sigma_i)`` over the batch, a bounded chunk at a time."""
        flat = x.reshape(x.shape[0], -1)
        alpha, sigma = (
            jnp.broadcast_to(v, x.shape[:1]) for v in (schedule.alpha(t), schedule.sigma(t))
        )
        size = max(1, _CHUNK // (jnp.shape(self.means)[0] * flat.shape[1]))
        if x.shape[0] <= size:
            return jax.vmap(function)(flat, alpha, sigma)
        return jax.lax.map(lambda args: function(*args), (flat, alpha, sigma), batch_size=size)

    def predict(self, schedule: Schedule) -> Predict:
        """The exact ``predict`` for ``x`` of shape ``(batch, ...)``."""

        def single(x, alpha, sigma):
            difference, std, total, log_joint = self._components(x, alpha, sigma)
            weights = jax.nn.softmax(log_joint) / total
            eps = sigma * (weights @ difference)
            # mean_k + alpha std_k^2 / total_k (x - alpha mean_k): for points, the means themselves.
            means = jnp.reshape(self.means, difference.shape)
            x0 = jax.nn.softmax(log_joint) @ means + alpha * ((weights * std**2) @ difference)
            return x0, eps

        def predict(x: Array, t: Array) -> Prediction:
            x0, eps = self._map(single, schedule, x, t)
            return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

        return predict

    def log_density(self, schedule: Schedule, x: Array, t: Array) -> Array:
        """``log p_t(x)`` in nats, shape ``(batch,)``."""

        def single(x, alpha, sigma):
            return jax.nn.logsumexp(self._components(x, alpha, sigma)[-1])

        return self._map(single, schedule, x, t)

    def sample(self, key: Key, n: int) -> Array:
        """``n`` independent draws, shape ``(n, ...)``."""
        pick, noise = jax.random.split(key)
        component = jax.random.categorical(pick, self._log_weights(), shape=(n,))
        means = jnp.asarray(self.means)[component]
        std = jnp.broadcast_to(self.std, jnp.shape(self.means)[:1])[component]
        return means + std.reshape((n,) + (1,) * (means.ndim - 1)) * normal(
            noise, means.shape, means.dtype
        )


def point_mass(point: Array) -> Mixture:
    """All mass on one ``point`` (no batch axis): every ODE solver of any order is exact on it."""
    return Mixture(jnp.asarray(point)[None])


def empirical(examples: Array) -> Mixture:
    """Equal mass on every example of a data set, shape ``(n, ...)``.

    Its ``predict`` is the optimum of the denoising loss on those examples: samples drawn with it
    are the examples themselves. Costs ``n`` distances a sample instead of a network call.
    """
    return Mixture(jnp.asarray(examples))
