"""What every kernel over data x noise level owes: a row in the table, and all of this holds."""

import functools
from typing import NamedTuple

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, mcmc, solvers
from diffjax.prediction import with_evaluations
from diffjax.random import per_sample
from diffjax.schedules import EDM, VPLinear

STD, DIMENSIONS = 0.3, 24
GAUSSIAN = analytic.Mixture(np.zeros((1, DIMENSIONS)), STD)
LEVELS = mcmc.noise_levels(0.05, 20.0, 300)
LOGITS = mcmc.mixture_logits(GAUSSIAN, LEVELS)


def log_density(x, sigma):
    return GAUSSIAN.log_density(EDM(), x, sigma)


def blackjax_mala():
    return mcmc.blackjax_move(lambda density: blackjax.mala(density, 0.05), log_density)


def blackjax_sgld():
    return mcmc.blackjax_gradient_move(blackjax.sgld, lambda sigma: 0.1 * sigma**2)


class Row(NamedTuple):
    """A kernel's two moves, from no arguments, and what is promised of them."""

    x_move: object
    sigma_move: object = lambda: mcmc.posterior_draw(LEVELS, LOGITS)
    by_chain: bool = True  # with a key per chain, a chain depends on its own alone
    traced: int | None = None  # calls in the program, where a loop repeats them


def log_langevin(rate, evaluations):
    return mcmc.log_langevin(rate, 1 / (2 * DIMENSIONS), 0.05, 20.0, evaluations)


TABLE = {
    "langevin": Row(lambda: mcmc.langevin(0.1)),
    "langevin_relative": Row(lambda: mcmc.langevin(mcmc.relative(0.2))),
    "mala": Row(lambda: mcmc.mala(mcmc.relative(0.2))),
    "mala_density": Row(lambda: mcmc.mala(0.1, log_density)),
    "renoise": Row(lambda: mcmc.renoise(0.2)),
    "renoise_heun": Row(lambda: mcmc.renoise(0.5, solvers.heun(EDM()))),
    "excursion": Row(lambda: mcmc.excursion(3.0, solvers.multistep(EDM()), 12), traced=1),
    "excursion_stochastic": Row(
        lambda: mcmc.excursion(3.0, solvers.sde_multistep(EDM()), 30), traced=1
    ),
    "excursion_to_a_level": Row(
        lambda: mcmc.excursion(3.0, solvers.multistep(EDM()), 12, levels=(0.5, 1.3)),
        lambda: None,
        traced=1,
    ),
    "blackjax_mala": Row(blackjax_mala),
    "blackjax_sgld": Row(blackjax_sgld, by_chain=False),
    "mode": Row(lambda: mcmc.langevin(0.1), lambda: mcmc.posterior_mode(LEVELS, LOGITS)),
    "mean": Row(lambda: mcmc.langevin(0.1), lambda: mcmc.posterior_mean(LEVELS, LOGITS)),
    "log_langevin": Row(
        lambda: mcmc.langevin(0.1),
        lambda: log_langevin(mcmc.density_rate(log_density), 0),
    ),
    "log_langevin_score": Row(lambda: mcmc.langevin(0.1), lambda: log_langevin(mcmc.score_rate, 2)),
}
each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)


def make(row, predict=None):
    predict = predict or GAUSSIAN.predict(EDM())
    return mcmc.kernel(predict, row.x_move(), row.sigma_move())


def start(chains=4, dtype=jnp.float32):
    sigma = jnp.linspace(0.6, 1.2, chains, dtype=dtype)
    x = jax.random.normal(jax.random.key(7), (chains, DIMENSIONS), dtype)
    return jnp.sqrt(STD**2 + sigma[:, None] ** 2) * x, sigma


@functools.cache
def stepped(name):
    """A step of each chain with a key of its own, compiled."""
    return jax.jit(make(TABLE[name]).step)


def keys(chains=4, seed=0):
    return per_sample(jax.random.key(seed), jnp.arange(chains))


@pytest.mark.parametrize("name", TABLE)
def test_step_has_the_form_of_blackjax(name):
    kernel = make(TABLE[name])
    state = kernel.init(start(), jax.random.key(0))
    chex.assert_trees_all_equal(tuple(state), start())
    after, info = stepped(name)(keys(), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal(info.sigma, after.sigma)
    assert info.acceptance.shape == (4,)
    assert ((info.acceptance >= 0) & (info.acceptance <= 1)).all()
    chex.assert_tree_all_finite(after)
    assert (after.sigma != state.sigma).all()
    again, _ = stepped(name)(keys(seed=1), state)
    assert jnp.abs(again.x - after.x).max() > 0


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.by_chain])
def test_a_chain_depends_on_its_own_key_alone(name):
    """Other states and keys of the others change nothing."""
    state = mcmc.ChainState(*start())
    whole, _ = stepped(name)(keys(), state)
    others = mcmc.ChainState(state.x.at[:2].add(1.0), state.sigma.at[:2].multiply(0.9))
    part, _ = stepped(name)(keys().at[:2].set(keys(seed=5)[:2]), others)
    last = lambda tree: jax.tree.map(lambda leaf: leaf[2:], tree)  # noqa: E731
    chex.assert_trees_all_close(last(part), last(whole), rtol=1e-5)
    assert jnp.abs(part.x[:2] - whole.x[:2]).max() > 0


@each
def test_evaluations_are_the_calls_made(row):
    calls = []
    exact = GAUSSIAN.predict(EDM())

    def predict(x, sigma):
        calls.append(1)
        return exact(x, sigma)

    kernel = make(row, predict)
    jax.eval_shape(kernel.step, keys(), mcmc.ChainState(*start()))
    tangents = row is TABLE["log_langevin_score"]  # its derivative is as dear as a call
    assert len(calls) + tangents == (row.traced or kernel.evaluations)
    assert make(row, with_evaluations(exact, 2)).evaluations == 2 * kernel.evaluations


@pytest.mark.parametrize("name", ["langevin", "mala", "excursion", "log_langevin_score"])
def test_scan_over_steps_traces_once_and_vmaps(name):
    row, traces = TABLE[name], []
    exact = GAUSSIAN.predict(EDM())

    def run(key, state):
        traces.append(1)
        return mcmc.scan(make(row, exact), key, state, 3)

    state = mcmc.ChainState(*start(2))
    jitted = jax.jit(jax.vmap(run))
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    after, info = jitted(jax.random.split(jax.random.key(0)), pair)
    jitted(jax.random.split(jax.random.key(1)), after)
    assert len(traces) == 1
    assert info.sigma.shape == (2, 3, 2)
    assert jnp.abs(after.x[0] - after.x[1]).max() > 0


@each
def test_leaves_the_joint_law_as_it_is(row, x64):
    """Small steps from p(sigma) p_sigma(x): after 40, x / sqrt(std^2 + sigma^2) is still white.

    The Gibbs step is exact, so what is left is the moves' own error; mode and mean are not drawn
    from the posterior, but near it.
    """
    chains = 400
    state = mcmc.ChainState(*start(chains, jnp.float64))
    run = jax.jit(lambda key, state: mcmc.scan(make(row), key, state, 40)[0])
    after = run(keys(chains, 3), state)
    white = after.x / jnp.sqrt(STD**2 + after.sigma[:, None] ** 2)
    # 9600 numbers: the standard error of the variance is 0.014; of its mean 0.01.
    assert abs(float(white.var()) - 1) < 0.06
    assert abs(float(white.mean())) < 0.05
    assert jnp.abs(after.x - state.x).max() > 0.1


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(0.002, 80.0)], ids=["vp", "edm"])
def test_any_schedule_is_seen_as_exploding(schedule, x64):
    """The network of another schedule, in x / alpha, is the exact one of the exploding process."""
    predict = mcmc.exploding(schedule, with_evaluations(GAUSSIAN.predict(schedule), 2))
    x, sigma = start(dtype=jnp.float64)
    exact = GAUSSIAN.predict(EDM())(x, sigma)
    chex.assert_trees_all_close(predict(x, sigma), exact, rtol=1e-6, atol=1e-9)
    assert getattr(predict, "evaluations", 1) == 2
    noise = mcmc.noise_range(schedule)
    assert noise.t_min == pytest.approx(float(schedule.sigma(schedule.t_min)), rel=1e-2)
    assert noise.t_max > 50


def test_a_level_for_each_state():
    with pytest.raises(ValueError, match=r"sigma has shape \(\), not \(4,\)"):
        make(TABLE["mode"]).init((start()[0], 1.0), None)
