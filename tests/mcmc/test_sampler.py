"""Drawing by Denoising MCMC: what is denoised, what it costs, going on, spreading over devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, mcmc, parallel
from diffjax.prediction import with_evaluations
from diffjax.random import fold_in, per_sample
from diffjax.schedules import EDM

D, LOW, HIGH = 16, 0.01, 50.0
MIXTURE = analytic.Mixture(np.random.default_rng(0).uniform(size=(10, D)), 0.05)
EXACT = MIXTURE.predict(EDM(LOW, HIGH))
LEVELS = mcmc.noise_levels(LOW, HIGH, 300)
LOGITS = mcmc.mixture_logits(MIXTURE, LEVELS)
KEYS = per_sample(jax.random.key(0), jnp.arange(8))
NAMES = {"kar1": 5, "pf": 4, "rk45": 6, "kar2": 5, "rd": 4, "em": 4, "dpm_solver_pp": 8, "unipc": 4}


def dlg(predict):
    return mcmc.denoising_langevin_gibbs(predict, 0.5, LEVELS, LOGITS)


def make(name="kar1", n_skip=3, select="least_noisy", kernel=dlg, burn_in=2):
    start = mcmc.Start(HIGH, mcmc.integrator("kar1", 9, low=LOW), 0.5, ((kernel, burn_in),))
    integrator = mcmc.integrator(name, NAMES[name], low=LOW)
    return mcmc.denoising_mcmc(kernel, integrator, start, n_skip=n_skip, low=LOW, select=select)


@pytest.fixture(scope="module")
def begun():
    return jax.jit(lambda keys: make().init(EXACT, keys, (D,)))(KEYS)


def cost(sampler, predict=EXACT):
    """The ``nfe`` of a draw, nothing computed."""
    found = []

    def draw(chains):
        found.append(sampler.draw(predict, KEYS, chains)[1].nfe)

    state = mcmc.ChainState(jnp.zeros((8, D)), jnp.ones(8))
    jax.eval_shape(draw, mcmc.Chains(state, jnp.zeros((), jnp.int32)))
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_costs_the_chains_steps_the_integrators_calls_and_tweedies(name):
    assert cost(make(name)) == 3 + NAMES[name] + 1
    assert cost(make(name, n_skip=0)) == NAMES[name] + 1


def test_the_cost_is_what_is_called(begun):
    calls = []

    def predict(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return EXACT(x, sigma)

    jax.block_until_ready(make().draw(predict, KEYS, begun)[1].x)
    jax.effects_barrier()
    assert len(calls) == cost(make()) == 9


def test_the_cost_of_the_start_and_of_guidance():
    calls = []

    def predict(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return EXACT(x, sigma)

    jax.block_until_ready(make().init(predict, KEYS, (D,)).state.x)
    jax.effects_barrier()
    assert make().start_calls == len(calls) == 9 + 2
    assert cost(make(), with_evaluations(EXACT, 2)) == 2 * (3 + 5 + 1)

    def mala(predict):
        return mcmc.kernel(predict, mcmc.mala(0.5), mcmc.posterior_mode(LEVELS, LOGITS))

    assert cost(make(kernel=mala)) == 2 * 3 + 5 + 1


@pytest.mark.parametrize("name", ["kar1", "em", "dpm_solver_pp"])
def test_without_steps_from_pure_noise_it_is_the_integrator_bit_for_bit(name):
    integrator = mcmc.integrator(name, NAMES[name], low=LOW)
    x = HIGH * jax.random.normal(jax.random.key(5), (8, D))
    noise = mcmc.ChainState(x, jnp.full(8, HIGH))
    own = fold_in(fold_in(KEYS, 1), 1)

    # Not compiled as a whole: XLA may fuse, and so round, the two programs differently.
    solution = integrator.run(EXACT, x, jnp.full(8, HIGH), own)
    plain = EXACT(solution.x, jnp.full(8, LOW)).x0
    chains = mcmc.Chains(noise, jnp.zeros((), jnp.int32))
    after, drawn = make(name, n_skip=0).draw(EXACT, KEYS, chains)
    chex.assert_trees_all_equal(drawn.x, plain)
    chex.assert_trees_all_equal(after.state, noise)
    assert drawn.nfe == NAMES[name] + 1


@pytest.mark.parametrize("select", ["least_noisy", "last"])
def test_what_is_denoised(select, begun):
    """The least noisy of the window, its start included; the chain goes on from the last."""
    after, drawn = make(n_skip=6, select=select).draw(EXACT, KEYS, begun)
    own = fold_in(fold_in(KEYS, begun.round + 1), 0)
    states = [begun.state]
    for index in range(6):
        states.append(dlg(EXACT).step(fold_in(own, index), states[-1])[0])
    chex.assert_trees_all_close(after.state, states[-1], rtol=1e-4, atol=1e-4)
    levels = np.stack([state.sigma for state in states])
    place = levels.argmin(axis=0) if select == "least_noisy" else np.full(8, 6)
    expected = np.stack([states[place[i]].x[i] for i in range(8)])
    np.testing.assert_allclose(drawn.picked.x, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(drawn.picked.sigma, levels[place, np.arange(8)], rtol=1e-5)
    assert drawn.info.sigma.shape == (6, 8)


def test_a_saved_state_goes_on_as_if_never_stopped(begun):
    """Through host memory: three rounds at once, or one and two."""
    draw = jax.jit(lambda chains: make().draw(EXACT, KEYS, chains)[:2])
    chains, xs = begun, []
    for _ in range(3):
        chains, drawn = draw(chains)
        xs.append(drawn.x)
    once, _ = draw(begun)
    resumed = jax.device_get(once)
    second, drawn = draw(resumed)
    chex.assert_trees_all_equal(drawn.x, xs[1])
    chex.assert_trees_all_equal(draw(second)[1].x, xs[2])
    assert chains.round == 3
    # No draw is made twice, though the keys are the same.
    assert jnp.abs(xs[0] - xs[1]).max() > 0


@pytest.mark.parametrize("devices", [4])
def test_spread_over_devices_the_chains_are_the_same(devices, begun):
    mesh = parallel.make_mesh("sharding", 1, jax.devices()[:devices])
    rows = parallel.batch_sharding(mesh)
    keys = jax.device_put(KEYS, rows)
    placed = mcmc.Chains(jax.device_put(begun.state, rows), begun.round)
    draw = jax.jit(lambda keys, chains: make("em").draw(EXACT, keys, chains)[:2])
    _, drawn = draw(keys, placed)
    assert len(drawn.x.sharding.device_set) == devices
    _, alone = draw(KEYS, begun)
    chex.assert_trees_all_close(drawn.x, alone.x, rtol=1e-4, atol=1e-4)
    # Chain i depends on its key alone, not on how many there are.
    few = mcmc.Chains(jax.tree.map(lambda leaf: leaf[:3], begun.state), begun.round)
    chex.assert_trees_all_close(draw(KEYS[:3], few)[1].x, alone.x[:3], rtol=1e-4, atol=1e-4)


def test_weights_of_the_mixture_and_distance_to_its_means():
    """After 4000 samples of 200 chains every component has its tenth, and samples lie on it."""
    sampler, keys = make("dpm_solver_pp"), per_sample(jax.random.key(1), jnp.arange(200))

    def draw(chains, _):
        chains, drawn = sampler.draw(EXACT, keys, chains)
        return chains, drawn.x

    @jax.jit
    def run(keys):
        chains = sampler.init(EXACT, keys, (D,))
        return jax.lax.scan(draw, chains, None, length=20)[1]

    x = np.asarray(run(keys)).reshape(-1, D)
    distances = np.sqrt(((x[:, None] - MIXTURE.means) ** 2).mean(-1))
    shares = np.bincount(distances.argmin(axis=1), minlength=10) / len(x)
    # 200 independent chains at least: a standard error of 0.021.
    assert np.abs(shares - 0.1).max() < 0.06
    assert 0.03 < distances.min(axis=1).mean() < 0.1


def test_mistakes():
    with pytest.raises(ValueError, match="n_skip must be at least 0, got -1"):
        make(n_skip=-1)
    with pytest.raises(ValueError, match="unknown select 'best'"):
        make(select="best")
