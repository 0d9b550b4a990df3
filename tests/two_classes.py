"""A mixture of two classes with everything exact, for tests of guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import guidance
from diffjax.analytic import Mixture
from diffjax.prediction import from_x0
from diffjax.schedules import EDM, VPLinear, expand

# Two classes of two components each; the last row weighs all of them, for "no label".
MEANS = np.array([[-1.0, 0.5], [-1.5, -0.5], [1.0, 0.2], [0.3, 1.4]])
STD = np.array([0.3, 0.5, 0.4, 0.2])
JOINT = np.log([0.1, 0.3, 0.2, 0.4])
LOG_WEIGHTS = np.where([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], JOINT, -np.inf)
NULL = 2
LABELS = np.array([0, 1, 1, 0, 2])
SCHEDULES = {"vp": VPLinear(), "edm": EDM()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def mixture(label):
    return Mixture(MEANS, STD, LOG_WEIGHTS[label])


def exact(schedule):
    """The mixture's ``(x, t, labels) -> Prediction``."""

    def single(x, t, label):
        found = Mixture(MEANS, STD, jnp.asarray(LOG_WEIGHTS)[label]).predict(schedule)(x[None], t)
        return jax.tree.map(lambda leaf: leaf[0], found)

    return lambda x, t, labels: jax.vmap(single)(x, jnp.broadcast_to(t, x.shape[:1]), labels)


def log_posterior(schedule, label):
    """The mixture's exact classifier ``log p(y | x_t)``."""
    log_prior = jax.nn.logsumexp(jnp.asarray(LOG_WEIGHTS[label]))

    def log_probability(x, t):
        given, whole = (mixture(y).log_density(schedule, x, t) for y in (label, NULL))
        return log_prior + given - whole

    return log_probability


def simple(schedule):
    """A cheap ``(x, t, labels) -> Prediction`` that depends on all its arguments."""

    def predict(x, t, labels):
        x0 = jnp.tanh(2 * x + expand(labels, x))
        return from_x0(schedule, x, t, x0)._replace(variance=x0**2)

    return predict


def example(schedule):
    t = jnp.linspace(0.1, 0.9, 5)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    return x * jnp.sqrt(1 + expand(schedule.sigma(t), x) ** 2), t


def cfg(schedule, scale, **options):
    return guidance.classifier_free(simple(schedule), jnp.asarray(LABELS), NULL, scale, **options)


def consistent(schedule, x, t, prediction):
    alpha, sigma = (expand(f(t), x) for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-9)
