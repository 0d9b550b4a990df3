"""Moves of the noise level: exact posteriors, Langevin in log sigma, what a predictor must give."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, mcmc
from diffjax.schedules import EDM

MEANS = np.random.default_rng(0).normal(size=(3, 5))
MIXTURE = analytic.Mixture(MEANS, np.array([0.2, 0.3, 0.4]), np.log([0.2, 0.3, 0.5]))
LEVELS = mcmc.noise_levels(0.05, 20.0, 200)
LOGITS = mcmc.mixture_logits(MIXTURE, LEVELS)


def log_density(x, sigma):
    return MIXTURE.log_density(EDM(), x, sigma)


def test_the_noisiest_level_comes_first():
    levels = mcmc.noise_levels(0.01, 50.0, 1000)
    assert levels[0] == pytest.approx(50) and levels[-1] == pytest.approx(0.01, rel=0.01)
    assert (np.diff(np.log(levels)) < 0).all()
    np.testing.assert_allclose(np.diff(np.log(levels)), np.diff(np.log(levels))[0])


def test_exact_logits_are_log_densities_at_every_level(x64):
    x = MIXTURE.sample(jax.random.key(0), 6) + 0.7 * jax.random.normal(jax.random.key(1), (6, 5))
    expected = jax.vmap(lambda sigma: log_density(x, sigma), out_axes=1)(jnp.asarray(LEVELS))
    difference = LOGITS(x) - expected
    # Up to one constant for all.
    np.testing.assert_allclose(difference, difference[0, 0], rtol=1e-9)


def test_in_many_dimensions_the_posterior_is_as_narrow_as_the_law_says():
    d, sigma = 64, 1.0
    point = analytic.point_mass(np.zeros(d))
    levels = mcmc.noise_levels(0.05, 20.0, 1000)
    move = mcmc.posterior_mode(levels, mcmc.mixture_logits(point, levels))
    x = sigma * jax.random.normal(jax.random.key(0), (2000, d))
    state, _ = move.step(jax.random.key(1), None, mcmc.ChainState(x, jnp.ones(2000)))
    found = float(jnp.log(state.sigma).std())
    assert found == pytest.approx((2 * d) ** -0.5, rel=0.08)


def test_a_draw_has_the_posterior_mean_and_width(x64):
    x = jnp.repeat(MIXTURE.sample(jax.random.key(0), 1) + 0.5, 4000, axis=0)
    state = mcmc.ChainState(x, jnp.ones(4000))
    weights = jax.nn.softmax(LOGITS(x[:1])[0])
    mean = jnp.sum(weights * np.log(LEVELS))
    width = jnp.sqrt(jnp.sum(weights * (np.log(LEVELS) - mean) ** 2))
    drawn, _ = mcmc.posterior_draw(LEVELS, LOGITS).step(jax.random.key(1), None, state)
    logs = jnp.log(drawn.sigma)
    assert abs(float(logs.mean() - mean)) < 5 * float(width) / 4000**0.5
    assert float(logs.std() / width) == pytest.approx(1, abs=0.06)
    middle, _ = mcmc.posterior_mean(LEVELS, LOGITS).step(None, None, state)
    np.testing.assert_allclose(jnp.log(middle.sigma), mean, rtol=1e-9)
    mode, _ = mcmc.posterior_mode(LEVELS, LOGITS).step(None, None, state)
    np.testing.assert_allclose(mode.sigma, LEVELS[jnp.argmax(weights)], rtol=1e-9)


def test_the_rate_of_the_score_is_the_rate_of_the_density(x64):
    """Hutchinson's estimate is unbiased: its mean over many signs is the derivative."""
    x = MIXTURE.sample(jax.random.key(0), 1) + 0.5
    state = mcmc.ChainState(jnp.repeat(x, 20_000, axis=0), jnp.full(20_000, 0.6))
    exact = mcmc.density_rate(log_density)(None, None, jax.tree.map(lambda v: v[:1], state))
    found = mcmc.score_rate(jax.random.key(1), MIXTURE.predict(EDM()), state)
    step = 1e-5
    by_difference = (
        log_density(x, jnp.array([0.6 * np.exp(step)]))
        - log_density(x, jnp.array([0.6 * np.exp(-step)]))
    ) / (2 * step)
    np.testing.assert_allclose(exact, by_difference, rtol=1e-6)
    assert abs(float(found.mean() - exact[0])) < 5 * float(found.std()) / 20_000**0.5


def test_langevin_in_log_sigma_finds_the_posterior(x64):
    chains, d = 3000, 32
    wide = analytic.Mixture(np.zeros((1, d)), 0.1)
    levels = mcmc.noise_levels(0.05, 20.0, 2000)
    x = jnp.repeat(0.8 * jax.random.normal(jax.random.key(0), (1, d)), chains, axis=0)
    weights = jax.nn.softmax(mcmc.mixture_logits(wide, levels)(x[:1])[0])
    mean = float(jnp.sum(weights * np.log(levels)))
    width = float(jnp.sqrt(jnp.sum(weights * (np.log(levels) - mean) ** 2)))
    rate = mcmc.density_rate(lambda x, sigma: wide.log_density(EDM(), x, sigma))
    move = mcmc.log_langevin(rate, 0.2 / (2 * d), 0.05, 20.0, 0)

    def body(state, key):
        return move.step(key, None, state)[0], None

    state = mcmc.ChainState(x, jnp.full(chains, 1.5))
    keys = jax.random.split(jax.random.key(1), 80)
    logs = jnp.log(jax.jit(lambda s: jax.lax.scan(body, s, keys))(state)[0].sigma)
    assert float(logs.mean()) == pytest.approx(mean, abs=0.1 * width)
    assert float(logs.std()) == pytest.approx(width, rel=0.1)


def test_langevin_in_log_sigma_stays_between_the_ends():
    move = mcmc.log_langevin(lambda *_: 0.0, 1.0, 0.5, 2.0, 0)
    state = mcmc.ChainState(jnp.zeros((500, 2)), jnp.full(500, 1.9))
    after, _ = move.step(jax.random.key(0), None, state)
    assert (after.sigma >= 0.5).all() and (after.sigma <= 2.0).all()
    assert after.sigma.min() < 0.6 and after.sigma.max() > 1.9


def test_levels_left_out_are_never_chosen():
    x = 0.01 * jax.random.normal(jax.random.key(0), (20, 5)) + MEANS[0]
    state = mcmc.ChainState(x, jnp.ones(20))
    for make in mcmc.posterior_mode, mcmc.posterior_draw:
        move = make(LEVELS, mcmc.within(LEVELS, LOGITS, 0.5, 3.0))
        after, _ = move.step(jax.random.key(1), None, state)
        assert (after.sigma >= 0.499).all() and (after.sigma <= 3.001).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mcmc.noise_levels(0.0, 1.0), "0 < low < high"),
        (lambda: mcmc.noise_levels(1.0, 0.5), "0 < low < high"),
        (lambda: mcmc.noise_levels(0.1, 0.5, 1), "count of at least 2"),
        (lambda: mcmc.within(LEVELS, LOGITS, 30.0), "no noise level is between 30 and inf"),
        (lambda: mcmc.log_langevin(mcmc.score_rate, 0.0, 0.1, 1.0, 2), "step size must be above"),
        (lambda: mcmc.log_langevin(mcmc.score_rate, 0.1, 1.0, 1.0, 2), "0 < low < high"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_logits_are_traced_once():
    traces = []

    def logits(x):
        traces.append(1)
        return LOGITS(x)

    step = jax.jit(lambda key, state: mcmc.posterior_mode(LEVELS, logits).step(key, None, state))
    state = mcmc.ChainState(jnp.ones((2, 5)), jnp.ones(2))
    chex.assert_trees_all_equal(step(jax.random.key(0), state), step(jax.random.key(1), state))
    assert len(traces) == 1
