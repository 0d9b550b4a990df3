"""Exact predictions against autodiff, quadrature and each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic
from diffjax.analytic import Gaussian, Mixture
from diffjax.schedules import EDM, FlowMatching, VPLinear, expand, perturb

MEAN = np.array([0.5, -1.0, 2.0])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.0], [-0.2, 0.1, 0.0]])  # of rank two
GAUSSIAN = Gaussian(MEAN, FACTOR @ FACTOR.T)
MIXTURE = Mixture(
    np.array([[0.0, 1.0, 0.0], [2.0, 0.0, -1.0], [-1.0, -1.0, 0.5]]),
    np.array([0.2, 0.5, 0.1]),
    np.log([0.5, 0.3, 0.2]),
)
SCHEDULES = {"vp": VPLinear(), "edm": EDM(), "flow": FlowMatching()}
DISTRIBUTIONS = {"gaussian": GAUSSIAN, "mixture": MIXTURE}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_prediction_is_the_gradient_of_the_log_density(schedule, distribution, x64):
    """eps = -sigma grad log p_t, and x0 follows from Tweedie."""
    t = jnp.linspace(0.05, 0.95, 6) * schedule.t_max
    x = perturb(schedule, distribution.sample(jax.random.key(0), 6), t, jnp.ones((6, 3)))
    got = distribution.predict(schedule)(x, t)
    score = jax.grad(lambda x: distribution.log_density(schedule, x, t).sum())(x)
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    np.testing.assert_allclose(got.eps, -sigma * score, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(alpha * got.x0 + sigma * got.eps, x, rtol=1e-9)


def test_mixture_density_integrates_to_one(x64):
    mixture = Mixture(np.array([[-1.0], [0.7]]), 0.3, np.log([0.25, 0.75]))
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(mixture.log_density(VPLinear(), jnp.asarray(grid)[:, None], 0.3))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-9)


def test_gaussian_and_single_component_mixture_agree(x64):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    t = jnp.linspace(0.1, 0.9, 5)
    one = Gaussian(MEAN, 0.4**2 * np.eye(3)).predict(VPLinear())(x, t)
    two = Mixture(MEAN[None], 0.4).predict(VPLinear())(x, t)
    chex.assert_trees_all_close(one, two, rtol=1e-10)


def test_point_mass(x64):
    point = np.arange(6.0).reshape(2, 3, 1)
    x = jax.random.normal(jax.random.key(0), (4, 2, 3, 1))
    got = analytic.point_mass(point).predict(VPLinear())(x, 0.4)
    alpha, sigma = VPLinear().alpha(0.4), VPLinear().sigma(0.4)
    np.testing.assert_allclose(got.x0, np.broadcast_to(point, x.shape))
    np.testing.assert_allclose(got.eps, (x - alpha * point) / sigma, rtol=1e-12)


def test_empirical_is_the_posterior_mean_over_examples(x64):
    examples = np.random.default_rng(0).normal(size=(20, 2, 2, 1))
    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 1))
    t = jnp.array([0.2, 0.5, 0.8])
    got = analytic.empirical(examples).predict(VPLinear())(x, t)
    for i in range(3):
        alpha, sigma = VPLinear().alpha(t[i]), VPLinear().sigma(t[i])
        exponent = -((x[i] - alpha * examples) ** 2).sum((1, 2, 3)) / (2 * sigma**2)
        weight = np.exp(exponent - exponent.max())
        mean = np.tensordot(weight / weight.sum(), examples, 1)
        np.testing.assert_allclose(got.x0[i], mean, rtol=1e-9)


def test_large_data_sets_are_worked_off_in_chunks_to_the_same_result(monkeypatch):
    examples = jax.random.normal(jax.random.key(0), (50, 4))
    x = jax.random.normal(jax.random.key(1), (13, 4))
    whole = analytic.empirical(examples).predict(EDM())(x, 0.5)
    monkeypatch.setattr(analytic, "_CHUNK", 50 * 4 * 3)
    parts = analytic.empirical(examples).predict(EDM())(x, 0.5)
    chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_no_overflow_far_from_the_data_in_float32():
    x = 1e3 * jnp.ones((2, 3))
    for t in (0.002, 80.0):
        got = MIXTURE.predict(EDM())(x, t)
        assert jnp.isfinite(got.x0).all() and jnp.isfinite(got.eps).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_samples_have_the_moments(distribution):
    draws = np.asarray(distribution.sample(jax.random.key(0), 40_000), np.float64)
    if isinstance(distribution, Gaussian):
        mean, covariance = distribution.mean, distribution.covariance
    else:
        weights = np.exp(distribution.log_weights)
        mean = weights @ distribution.means
        centred = distribution.means - mean
        covariance = (weights * distribution.std**2).sum() * np.eye(3)
        covariance += (weights[:, None] * centred).T @ centred
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.04)


def test_distributions_are_pytrees_and_compile():
    got = jax.jit(lambda d, x: d.predict(VPLinear())(x, 0.5))(MIXTURE, jnp.ones((2, 3)))
    chex.assert_trees_all_close(got, MIXTURE.predict(VPLinear())(jnp.ones((2, 3)), 0.5), rtol=1e-5)
