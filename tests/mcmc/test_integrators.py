"""The six integrators of the paper and two more: their formulas, budgets, and per-sample grids."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, mcmc
from diffjax.prediction import with_evaluations
from diffjax.random import per_sample
from diffjax.schedules import EDM

MEANS = np.random.default_rng(0).normal(size=(4, 6))
EXACT = analytic.Mixture(MEANS, 0.2).predict(EDM())
LOW, HIGH = 0.01, 50.0
# Calls that each can make, and calls that it cannot.
CALLS = {
    "kar1": (7, 8),
    "pf": (6, 1),
    "rk45": (12, 7),
    "kar2": (7, 6),
    "rd": (6, 1),
    "em": (6, 1),
    "dpm_solver_pp": (6, 0),
    "unipc": (6, 0),
}
each = pytest.mark.parametrize("name", CALLS)


def start(count=5, sigma=HIGH):
    x = sigma * jax.random.normal(jax.random.key(0), (count, 6))
    return x, jnp.full(count, sigma), per_sample(jax.random.key(1), jnp.arange(count))


def score(x, sigma):
    return -EXACT(x, sigma).eps / sigma


def test_every_integrator_is_listed_here():
    assert CALLS.keys() == mcmc.INTEGRATORS.keys()


@each
def test_makes_exactly_its_calls(name):
    calls = []

    def predict(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return EXACT(x, sigma)

    wanted, _ = CALLS[name]
    integrator = mcmc.integrator(name, wanted, low=LOW)
    x, sigma, keys = start()
    solution = jax.block_until_ready(
        jax.jit(integrator.run, static_argnums=0)(predict, x, sigma, keys)
    )
    jax.effects_barrier()
    assert len(calls) == integrator.calls == solution.nfe == wanted
    assert integrator.run(with_evaluations(EXACT, 2), x, sigma, keys).nfe == 2 * wanted


@each
def test_a_grid_of_each_samples_own(name):
    """Equal starts give the bits of one start for all; others, those of each sample alone."""
    run = mcmc.integrator(name, CALLS[name][0], low=LOW).run
    jitted = jax.jit(lambda x, sigma, key: run(EXACT, x, sigma, key).x)
    x, _, keys = start()
    sigma = jnp.array([0.5, 1.0, 2.0, 9.0, 50.0])
    together = jitted(x, sigma, keys)
    alone = [jitted(x[i : i + 1], sigma[i : i + 1], keys[i : i + 1]) for i in range(5)]
    chex.assert_trees_all_close(together, jnp.concatenate(alone), rtol=1e-3, atol=1e-3)
    chex.assert_tree_all_finite(jitted(x, jnp.full(5, LOW / 2), keys))  # nothing left to do


def test_kar1_is_edms_algorithm_1(x64):
    calls, (x, sigma, _) = 9, start()
    n = (calls + 3) // 2
    grid = np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), n - 1) ** 7
    y = x.astype(jnp.float64)
    for now, then in zip(grid, [*grid[1:], 0.0], strict=True):
        slope = -now * score(y, now)
        ahead = y + (then - now) * slope
        if then:
            slope = 0.5 * (slope - then * score(ahead, then))
            ahead = y + (then - now) * slope
        y = ahead
    integrator = mcmc.integrator("kar1", calls, low=LOW)
    found = integrator.run(EXACT, x.astype(jnp.float64), sigma, None).x
    np.testing.assert_allclose(found, y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name, half", [("pf", 0.5), ("rd", 1.0)])
def test_the_chains_of_score_sde(name, half, x64):
    """``x + h (sigma_i^2 - sigma_{i-1}^2) score``, the last level below 0.01 being 0."""
    calls, (x, sigma, _) = 6, start()
    key = jax.random.key(3)
    levels = np.concatenate([np.geomspace(HIGH, LOW, calls), [0.0]])
    y = x = x.astype(jnp.float64)
    for index in range(calls):
        variance = levels[index] ** 2 - levels[index + 1] ** 2
        y = y + half * variance * score(y, levels[index])
        if name == "rd" and index < calls - 1:
            noise = jax.random.normal(jax.random.fold_in(key, index), y.shape)
            y = y + np.sqrt(variance) * noise
    found = mcmc.integrator(name, calls, low=LOW).run(EXACT, x, sigma, key).x
    np.testing.assert_allclose(found, y, rtol=1e-6, atol=1e-6)


def test_em_as_published(x64):
    calls, (x, sigma, _) = 8, start()
    key = jax.random.key(3)
    y = x = x.astype(jnp.float64)
    for index, t in enumerate(np.linspace(1.0, 0.0, calls)):
        level = LOW * (HIGH / LOW) ** t
        squared = 2 * level**2 * np.log(HIGH / LOW)
        y = y + squared / calls * score(y, level)
        if index < calls - 1:
            noise = jax.random.normal(jax.random.fold_in(key, index), y.shape)
            y = y + np.sqrt(squared / calls) * noise
    found = mcmc.integrator("em", calls, low=LOW).run(EXACT, x, sigma, key).x
    np.testing.assert_allclose(found, y, rtol=1e-6, atol=1e-6)


def test_kar2_churns_inside_its_range_alone():
    """Above S_tmax and below S_tmin it is kar1; the constants go with the range of the data."""
    x, _, keys = start()
    runs = {
        (name, data_range): mcmc.integrator(name, 3, low=1.5, data_range=data_range).run
        for name in ("kar1", "kar2")
        for data_range in (1.0, 2.0)
    }
    sigma = jnp.full(5, 1.9)
    results = {key: run(EXACT, x, sigma, keys).x for key, run in runs.items()}
    chex.assert_trees_all_close(results["kar2", 1.0], results["kar1", 1.0])
    assert jnp.abs(results["kar2", 2.0] - results["kar1", 2.0]).max() > 0.1


@pytest.mark.parametrize("name", ["kar1", "pf", "rk45", "dpm_solver_pp", "unipc"])
def test_the_deterministic_converge_to_the_ode(name, x64):
    x, _, _ = start()
    x, sigma = x.astype(jnp.float64), jnp.array([0.5, 1.0, 2.0, 9.0, 50.0])
    exact = mcmc.rk45_adaptive(1e-9, 1e-9, LOW).run(EXACT, x, sigma).x
    calls = {"kar1": 801, "rk45": 396}.get(name, 2000 if name == "pf" else 400)
    integrator = mcmc.integrator(name, calls, low=LOW)
    found = jax.jit(lambda x: integrator.run(EXACT, x, sigma, None).x)(x)
    # kar1 goes on to the data, and pf half the way.
    beyond = {"kar1": 1.0, "pf": 0.5}.get(name, 0.0)
    exact = exact + beyond * (EXACT(exact, jnp.full(5, LOW)).x0 - exact)
    assert jnp.abs(found - exact).max() < (0.1 if name == "pf" else 2e-3)


def test_adaptive_rk45_counts_what_it_does():
    x, sigma, _ = start()
    loose, tight = (mcmc.rk45_adaptive(tol, tol, LOW).run(EXACT, x, sigma) for tol in (1e-2, 1e-5))
    assert 20 < loose.nfe < tight.nfe < 400 and (int(tight.nfe) - 1) % 6 == 0
    assert mcmc.rk45_adaptive().calls is None


@each
def test_calls_that_cannot_be_made(name):
    with pytest.raises(
        ValueError, match=rf"^{name}: need calls >= 1|^{name} makes .* use \d+ calls"
    ):
        mcmc.integrator(name, CALLS[name][1], low=LOW)


def test_mistakes():
    with pytest.raises(ValueError, match="unknown integrator 'kar3': choose one of kar1"):
        mcmc.integrator("kar3", 7, low=LOW)
    with pytest.raises(ValueError, match=r"low > 0, got calls=7, low=0"):
        mcmc.integrator("kar1", 7, low=0.0)
    with pytest.raises(ValueError, match="unknown end 'x0'"):
        mcmc.along(None, 3, 0.01, end="x0")
    with pytest.raises(ValueError, match="at least 1 step"):
        mcmc.along(None, 0, 0.01, end="stay")
