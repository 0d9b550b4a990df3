"""What is drawn with guidance: published figures, and guidance by an exact classifier."""

import itertools
from statistics import NormalDist

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import guidance, solvers
from diffjax.analytic import Gaussian, Mixture
from diffjax.schedules import EDM, Discrete, VPLinear
from diffjax.solvers import timesteps
from diffjax.solvers.transition import transition
from tests.two_classes import (
    LABELS,
    NULL,
    each_schedule,
    exact,
    example,
    log_posterior,
    mixture,
    simple,
)

# Published figures: a pair of Gaussians, p(x|c) = N(1, 0.25) and p(x) = N(0, 1.25).

WIDE = EDM(t_min=1e-4, t_max=1e4)


def guided_pair(scale):
    pair = [
        Gaussian(np.array([m]), np.array([[v]])).predict(WIDE) for m, v in ((1, 0.25), (0, 1.25))
    ]

    def predict(x, t, labels):
        choose = labels[:, None] == 0
        return jax.tree.map(lambda a, b: jnp.where(choose, a, b), *(p(x, t) for p in pair))

    return guidance.classifier_free(predict, jnp.zeros(2, int), 1, scale)


def moments(run):
    """Mean and standard deviation at the end: the map of a linear ODE is affine."""
    above, below = WIDE.t_max * jnp.array([[1.0], [-1.0]])
    ends = run(jnp.stack([above, below]))[:, 0]
    return (ends[0] + ends[1]) / 2, (ends[0] - ends[1]) / 2


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(1, 1.0, 0.5), (1.5, 1.2099, 0.3344), (2, 1.3228, 0.2236), (3, 1.4, 0.1), (4, 1.3968, 0.0447)],
)
def test_the_guided_ode_of_two_gaussians(scale, mean, std, x64):
    ts = timesteps.log_snr(WIDE, 1000)
    run = jax.jit(lambda x: solvers.solve(solvers.heun(WIDE), guided_pair(scale), x, ts).x)
    np.testing.assert_allclose(moments(run), (mean, std), atol=5e-4)


@pytest.mark.parametrize(
    ("low", "high", "mean", "std"),
    [(0.2, 2, 1.3427, 0.0732), (0.5, 1, 1.2296, 0.2324), (1, 10, 1.5605, 0.2101)],
)
def test_the_same_guided_in_an_interval(low, high, mean, std, x64):
    """Three solves, the outer two plain, are exact; one with the interval, nearly so."""
    solver = solvers.heun(WIDE)
    ends = (WIDE.t_max, high, low, WIDE.t_min)
    grids = [timesteps.log_snr(WIDE, 400, t_start=a, t_end=b) for a, b in itertools.pairwise(ends)]

    def parts(x):
        for ts, scale in zip(grids, (1.0, 4.0, 1.0), strict=True):
            x = solvers.solve(solver, guided_pair(scale), x, ts).x
        return x

    def whole(x):
        ts = timesteps.log_snr(WIDE, 3000)
        return solvers.solve(solver, guided_pair(guidance.interval(4.0, low, high)), x, ts).x

    np.testing.assert_allclose(moments(jax.jit(parts)), (mean, std), atol=5e-4)
    np.testing.assert_allclose(moments(jax.jit(whole)), (mean, std), atol=0.01)


# Classifier guidance.


@each_schedule
@pytest.mark.parametrize("label", [0, 1])
def test_an_exact_classifier_makes_the_prediction_conditional(schedule, label, x64):
    x, t = example(schedule)
    unconditional = mixture(NULL).predict(schedule)
    guided = guidance.classifier(unconditional, schedule, log_posterior(schedule, label))
    conditional = mixture(label).predict(schedule)
    chex.assert_trees_all_close(
        jax.jit(guided)(x, t), jax.jit(conditional)(x, t), rtol=1e-8, atol=1e-8
    )


def test_classifier_guidance_is_classifier_free_guidance_with_the_implicit_classifier(x64):
    schedule = VPLinear()
    x, t = example(schedule)
    scales = jnp.array([0.0, 0.5, 1.0, 2.0, 7.0])
    unconditional = mixture(NULL).predict(schedule)
    one = guidance.classifier(unconditional, schedule, log_posterior(schedule, 1), scales)
    two = guidance.classifier_free(exact(schedule), jnp.ones(5, int), NULL, scales)
    chex.assert_trees_all_close(jax.jit(one)(x, t), jax.jit(two)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(0.0, 0.0, 1.117), (1.0, 0.997, 0.499), (2.0, 1.320, 0.358), (4.0, 1.674, 0.289)],
)
def test_guided_ddim_of_two_classes(scale, mean, std):
    """Half N(-1, 0.25), half N(1, 0.25), guided to the second, by 1000 steps of DDIM."""
    chain = Discrete.linear(1000)
    both = Mixture(np.array([[-1.0], [1.0]]), 0.5)
    second = Mixture(np.array([[1.0]]), 0.5)

    def log_probability(x, t):
        return second.log_density(chain, x, t) - both.log_density(chain, x, t)

    predict = guidance.classifier(both.predict(chain), chain, log_probability, scale)
    recipe = solvers.recipe("ddim", chain, 1000, grid="uniform")
    # The ODE keeps the order of samples, so quantiles of the start stand for all draws.
    n = 2001
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    ends = jax.jit(lambda x: solvers.run(recipe, predict, x).x)(jnp.asarray(quantiles)[:, None])
    np.testing.assert_allclose((ends.mean(), ends.std()), (mean, std), atol=3e-3)


def test_classifier_guidance_of_a_linear_log_probability_shifts_the_noise():
    """log p = b x: eps moves by -s sigma b, sample by sample, and the variance stays."""
    schedule, slope = VPLinear(), jnp.array([1.0, -2.0])
    x, t = example(schedule)
    scales = jnp.arange(5.0)

    def predict(x, t):
        return simple(schedule)(x, t, LABELS)

    plain = predict(x, t)
    got = guidance.classifier(predict, schedule, lambda x, t: x @ slope, scales)(x, t)
    expected = plain.eps - (scales * schedule.sigma(t))[:, None] * slope
    np.testing.assert_allclose(got.eps, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.eps[0], plain.eps[0])
    np.testing.assert_array_equal(got.variance, plain.variance)


def test_the_guided_chain_moves_its_mean_by_variance_and_gradient(x64):
    schedule, key = Discrete.linear(1000), jax.random.key(0)
    x, slope = jax.random.normal(key, (3, 2)), jnp.array([1.0, -2.0])
    predict = mixture(NULL).predict(schedule)
    ts = jnp.array([0.5, 0.4])
    ends = [
        solvers.solve(
            solvers.ancestral(schedule, variance, gradient=gradient), predict, x, ts, key
        ).x
        for variance in ("small", "large")
        for gradient in (None, lambda x, t: 3 * jnp.broadcast_to(slope, x.shape))
    ]
    over = transition(schedule, solvers.Span(ts[0], ts[1], 0, 1), x)
    for plain, guided, moved in (
        (*ends[:2], over.small_variance),
        (*ends[2:], over.large_variance),
    ):
        np.testing.assert_allclose(guided - plain, 3 * moved * jnp.broadcast_to(slope, x.shape))


@pytest.mark.parametrize(
    ("scale", "mean", "std"), [(1.0, 0.998, 0.500), (2.0, 1.166, 0.440), (4.0, 1.285, 0.429)]
)
def test_guided_ancestral_sampling_of_two_classes(scale, mean, std):
    """The same two classes by the chain of 1000 steps with its large variances."""
    chain, n = Discrete.linear(1000), 20_000
    both, second = Mixture(np.array([[-1.0], [1.0]]), 0.5), Mixture(np.array([[1.0]]), 0.5)

    def gradient(x, t):
        def log_probability(x):
            return (second.log_density(chain, x, t) - both.log_density(chain, x, t)).sum()

        return scale * jax.grad(log_probability)(x)

    recipe = solvers.recipe(
        "ancestral", chain, 1000, grid="uniform", variance="large", gradient=gradient
    )
    x = jax.random.normal(jax.random.key(0), (n, 1))
    ends = jax.jit(lambda x: solvers.run(recipe, both.predict(chain), x, jax.random.key(1)).x)(x)
    np.testing.assert_allclose((ends.mean(), ends.std()), (mean, std), atol=4 * std / np.sqrt(n))
