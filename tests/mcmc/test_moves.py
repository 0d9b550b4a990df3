"""Moves of the data: exact where they claim to be, and as far off as the closed forms say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import analytic, mcmc, solvers
from diffjax.schedules import EDM

POINT = analytic.point_mass(np.zeros(64))
DOWN = solvers.multistep(EDM())


def stationary_variance(x_move, std, sigma, steps=60, chains=20_000, start=None):
    """Variance of N(0, std^2) with noise sigma in one dimension, after many moves at one level."""
    predict = analytic.Mixture(np.zeros((1, 1)), std).predict(EDM())
    scale = np.sqrt(std**2 + sigma**2) if start is None else start
    x = scale * jax.random.normal(jax.random.key(0), (chains, 1))

    def body(state, index):
        key = jax.random.fold_in(jax.random.key(1), index)
        state, acceptance = x_move.step(key, predict, state)
        return state, acceptance.mean()

    state = mcmc.ChainState(x, jnp.full(chains, sigma))
    run = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(steps)))
    state, acceptance = run(state)
    return float(state.x.var()), float(acceptance.mean())


def test_unadjusted_langevin_is_too_wide_as_computed(x64):
    """As x is multiplied by ``a = 1 - eta / (2 (s^2 + sigma^2))`` and noise of ``eta`` added."""
    eta, std, sigma = 0.5, 0.3, 0.8
    total = std**2 + sigma**2
    a = 1 - eta / (2 * total)
    found, _ = stationary_variance(mcmc.langevin(eta), std, sigma)
    assert found == pytest.approx(eta / (1 - a**2), rel=0.04)
    assert eta / (1 - a**2) > 1.2 * total


@pytest.mark.parametrize("density", [False, True], ids=["score", "density"])
def test_adjusted_langevin_is_exact_at_any_step(density, x64):
    std, sigma = 0.3, 0.8
    mixture = analytic.Mixture(np.zeros((1, 1)), std)
    log_density = (lambda x, sigma: mixture.log_density(EDM(), x, sigma)) if density else None
    # From half the width: the chain must find the law, not only keep it.
    found, acceptance = stationary_variance(mcmc.mala(0.8, log_density), std, sigma, start=0.4)
    assert found == pytest.approx(std**2 + sigma**2, rel=0.04)
    assert 0.5 < acceptance < 0.99


def test_the_score_alone_gives_the_acceptance_of_the_density(x64):
    """On a Gaussian the trapezium rule is exact: the same chain, state by state."""
    mixture = analytic.Mixture(np.zeros((1, 8)), 0.3)
    log_density = lambda x, sigma: mixture.log_density(EDM(), x, sigma)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (50, 8))
    state = mcmc.ChainState(x, jnp.linspace(0.5, 1.5, 50))
    with_score, with_density = (
        mcmc.mala(0.5, density).step(jax.random.key(1), mixture.predict(EDM()), state)
        for density in (None, log_density)
    )
    np.testing.assert_allclose(with_score[1], with_density[1], rtol=1e-9)
    np.testing.assert_array_equal(with_score[0].x, with_density[0].x)


def test_a_proposal_that_is_not_finite_is_refused():
    def predict(x, sigma):
        exact = POINT.predict(EDM())(x, sigma)
        return exact._replace(eps=jnp.where(jnp.abs(x) > 6, jnp.nan, exact.eps))

    x = jax.random.normal(jax.random.key(0), (20, 64)).at[:10, 0].set(5.9)
    state = mcmc.ChainState(x, jnp.ones(20))
    after, acceptance = mcmc.mala(3.9).step(jax.random.key(1), predict, state)
    assert jnp.isfinite(after.x).all() and (acceptance == 0).any()


@pytest.mark.parametrize("std, expected", [(1e-6, 1.0), (3.0, None)], ids=["point", "wide"])
def test_renoising_errs_along_the_data_alone(std, expected, x64):
    """Exact for a point; for wide data too narrow by (2 - m) / (2 - m + m k), see the docstring.

    With ``m = 1 - sqrt(1 - rho)`` and ``k = s^2 / (s^2 + sigma^2)`` the stationary variance is
    ``(2 - m) / (2 - m + m k)`` of the true one, as DDIM's step gives it.
    """
    sigma, share = 1.0, 0.75
    m, k = 1 - np.sqrt(1 - share), std**2 / (std**2 + sigma**2)
    expected = expected or (2 - m) / (2 - m + m * k)
    # The wide data's variance is forgotten slowly.
    scale = np.sqrt(expected * (std**2 + sigma**2))
    found, _ = stationary_variance(mcmc.renoise(share), std, sigma, start=scale)
    assert found / (std**2 + sigma**2) == pytest.approx(expected, rel=0.04)


def test_renoising_with_heun_is_nearly_exact_for_wide_data(x64):
    move = mcmc.renoise(0.75, solvers.heun(EDM()))
    found, _ = stationary_variance(move, 3.0, 1.0)
    assert move.evaluations == 2
    assert found / 10 == pytest.approx(1.0, rel=0.04)


def test_noise_drifts_as_the_law_says():
    """The sheet's figures: eta 0.5 from sigma 0.5 in 64 dimensions, levels by the exact mode."""
    means = np.random.default_rng(0).uniform(size=(10, 64)).astype(np.float32)
    mixture = analytic.Mixture(means, 0.05)
    levels = mcmc.noise_levels(0.01, 50.0, 1000)
    kernel = mcmc.denoising_langevin_gibbs(
        mixture.predict(EDM(0.01, 50.0)), 0.5, levels, mcmc.mixture_logits(mixture, levels)
    )
    x = mixture.sample(jax.random.key(0), 100)
    x = x + 0.5 * jax.random.normal(jax.random.key(1), x.shape)
    state = mcmc.ChainState(x, jnp.full(100, 0.5))
    run = jax.jit(lambda state: mcmc.scan(kernel, jax.random.key(2), state, 200)[1].sigma)
    median = np.median(run(state), axis=1)
    for steps, published in (10, 1.08), (50, 1.52), (100, 1.87), (200, 2.29):
        assert median[steps - 1] == pytest.approx(published, rel=0.08)
        law = mcmc.noise_drift(0.5, 0.5, steps)
        assert median[steps - 1] == pytest.approx(float(law), rel=0.08)


def test_renoising_does_not_drift():
    levels = mcmc.noise_levels(0.01, 50.0, 1000)
    logits = mcmc.mixture_logits(POINT, levels)
    predict = POINT.predict(EDM(0.01, 50.0))
    kernel = mcmc.kernel(predict, mcmc.renoise(0.5), mcmc.posterior_draw(levels, logits))
    state = mcmc.ChainState(jax.random.normal(jax.random.key(1), (100, 64)), jnp.ones(100))
    after, _ = jax.jit(lambda s: mcmc.scan(kernel, jax.random.key(2), s, 100))(state)
    # log sigma walks freely, by 1/sqrt(2 d) a step at most, about where it began.
    assert abs(float(jnp.log(after.sigma).mean())) < 0.45


def test_an_excursion_comes_down_to_levels_drawn_evenly(x64):
    """Wherever it started; and what it leaves there is of that level."""
    chains, std = 4000, 0.5
    predict = analytic.Mixture(np.zeros((1, 8)), std).predict(EDM())
    state = mcmc.ChainState(jnp.ones((chains, 8)), jnp.full(chains, 0.3))
    move = mcmc.excursion(50.0, solvers.multistep(EDM()), 60, levels=(0.2, 0.8))
    state, _ = jax.jit(lambda key: move.step(key, predict, state))(jax.random.key(0))
    share = (jnp.log(state.sigma) - np.log(0.2)) / np.log(4)
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    white = state.x / jnp.sqrt(std**2 + state.sigma[:, None] ** 2)
    assert abs(float(white.var()) - 1) < 5 * np.sqrt(2 / white.size)
    assert abs(np.corrcoef(np.log(state.sigma), (white**2).mean(1))[0, 1]) < 5 / np.sqrt(chains)


def test_an_n_step_round_trip_is_a_solver_and_noise():
    """The move is the library's own solver on two times, and fresh noise."""
    predict = analytic.Mixture(np.zeros((1, 3)), 0.5).predict(EDM())
    x, sigma = jax.random.normal(jax.random.key(0), (4, 3)), jnp.linspace(0.5, 2.0, 4)
    state, _ = mcmc.renoise(0.36).step(jax.random.key(1), predict, mcmc.ChainState(x, sigma))
    down = solvers.solve(solvers.ddim(EDM()), predict, x, jnp.stack([sigma, 0.8 * sigma])).x
    noise = 0.6 * sigma[:, None] * jax.random.normal(jax.random.key(1), x.shape)
    np.testing.assert_allclose(state.x, down + noise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mcmc.langevin(0.0), "eta must be above 0, got 0.0"),
        (lambda: mcmc.mala(-1.0), "eta must be above 0"),
        (lambda: mcmc.relative(4.0), "stable for 0 < c < 4, got c=4.0"),
        (lambda: mcmc.renoise(1.0), "between 0 and 1, got 1.0"),
        (lambda: mcmc.excursion(0.0, DOWN, 3), "need high > 0 and steps >= 1, got high=0.0"),
        (lambda: mcmc.excursion(1.0, DOWN, 0), "need high > 0 and steps >= 1"),
        (lambda: mcmc.excursion(1.0, DOWN, 3, levels=(0.5, 1.0)), "low <= high < 1.0 of levels"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
