"""Score-SDE's predictors and correctors: published steps, published figures, any combination."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, solvers
from diffjax.prediction import Prediction
from diffjax.schedules import EDM, VE, Discrete, SubVP, VPLinear
from diffjax.solvers import Span, solve, timesteps

N = 50
CHAIN = Discrete(np.linspace(0.1 / N, 20 / N, N))  # the paper's VP, in N steps
LADDER = EDM(t_min=0.01, t_max=50.0)  # its VE: time is sigma
LEVELS = np.append(np.geomspace(50.0, 0.01, N), 0.0)
KEY = jax.random.key(1)


def gaussian(std):
    return analytic.Mixture(np.zeros((1, 16)), std)


def ends(schedule, solver, predict, ts, n=4000):
    x = schedule.sigma(ts[0]) * jax.random.normal(jax.random.key(0), (n, 16))
    return jax.jit(lambda x: solve(solver, predict, x, jnp.asarray(ts), KEY).x)(x)


def one_step(solver, predict, x, t, t_next, remaining=2):
    span = Span(jnp.asarray(t), jnp.asarray(t_next), jnp.int32(0), jnp.int32(remaining))
    return solver.step(predict, x, solver.init(x), span, KEY)[0]


def published_chain(std, eps=1e-3):
    """The exact score of the continuous VP at the published times, read by the chain's solvers."""
    continuous = VPLinear()
    exact = gaussian(std).predict(continuous)

    def predict(x, t):
        k = jnp.round(N * t) - 1
        now = eps + (1 - eps) * k / (N - 1)
        score = -exact(x, now).eps / continuous.sigma(now)
        eps_hat = -CHAIN.sigma(t) * score
        return Prediction((x - CHAIN.sigma(t) * eps_hat) / CHAIN.alpha(t), eps_hat)

    return predict


FIGURES = [
    ("vp", solvers.probability_flow, 0.753, 0.530),
    ("vp", solvers.reverse_diffusion, 0.512, 0.502),
    ("ve", solvers.probability_flow, 0.381, 0.263),
    ("ve", solvers.reverse_diffusion, 0.273, 0.256),
    ("ve", solvers.ancestral, 0.230, 0.249),
]


@pytest.mark.parametrize(("kind", "make", "plain", "corrected"), FIGURES)
def test_published_figures_of_predictor_and_corrector(kind, make, plain, corrected, x64):
    """Standard deviation of 50-step samples of N(0, c^2 I_16), c = 0.5 (VP), 0.25 (VE)."""
    if kind == "vp":
        schedule, predict, ts = CHAIN, published_chain(0.5), np.linspace(1, 0, N + 1)
    else:
        schedule, predict, ts = LADDER, gaussian(0.25).predict(LADDER), LEVELS
    solver = make(schedule)
    both = solvers.predictor_corrector(solver, solvers.langevin(schedule, 0.16))
    assert abs(ends(schedule, solver, predict, ts).std() - plain) < 0.004
    assert abs(ends(schedule, both, predict, ts).std() - corrected) < 0.004


def test_published_figures_of_euler_maruyama(x64):
    schedule, ts = VE(), np.linspace(1, 1e-5, N + 1)
    solver, predict = solvers.euler_maruyama(schedule), gaussian(0.25).predict(schedule)
    both = solvers.predictor_corrector(solver, solvers.langevin(schedule, 0.16))
    assert abs(ends(schedule, solver, predict, ts).std() - 0.254) < 0.004
    assert abs(ends(schedule, both, predict, ts).std() - 0.252) < 0.004


@pytest.mark.parametrize("schedule", [VPLinear(), SubVP(), VE()], ids=["vp", "sub_vp", "ve"])
@pytest.mark.parametrize(
    "make", [solvers.euler_maruyama, solvers.reverse_diffusion, solvers.probability_flow]
)
def test_all_predictors_reach_the_same_law(make, schedule):
    """Their marginals are those of the forward process, half-way and at the end."""
    std, steps = 0.4, 600
    within = 0.06 if make is solvers.probability_flow else 0.03  # of first order, and it shows
    data, ts = gaussian(std), timesteps.uniform(schedule, steps)
    x = schedule.sigma(1.0) * jax.random.normal(jax.random.key(0), (500, 16))
    run = jax.jit(
        lambda x: solve(make(schedule), data.predict(schedule), x, ts, KEY, trajectory=True)
    )
    states = run(x).trajectory
    for index in (steps // 2, steps):
        exact = jnp.hypot(schedule.alpha(ts[index]) * std, schedule.sigma(ts[index]))
        assert abs(states[index].std() / exact - 1) < within


def test_the_papers_ancestral_is_ancestral(x64):
    """VP: (x + b s)/sqrt(1 - b) + sqrt(b) z, variance large; VE: x + d s, variance small."""
    x = jax.random.normal(jax.random.key(5), (3, 16))
    noise = jax.random.normal(KEY, x.shape)
    for k in (1, 20, N - 1):
        b, t, s = CHAIN.betas[k], (k + 1) / N, k / N
        predict = gaussian(0.5).predict(CHAIN)
        score = -predict(x, t).eps / CHAIN.sigma(t)
        got = one_step(solvers.ancestral(CHAIN, "large"), predict, x, t, s)
        expected = (x + b * score) / np.sqrt(1 - b) + np.sqrt(b) * noise
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)

        schedule = VE()
        predict = gaussian(0.25).predict(schedule)
        big, small = schedule.sigma(t), schedule.sigma(s)
        d = big**2 - small**2
        score = -predict(x, t).eps / big
        got = one_step(solvers.ancestral(schedule, "small"), predict, x, t, s)
        expected = x + d * score + jnp.sqrt(small**2 * d / big**2) * noise
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_published_steps(x64):
    x = jax.random.normal(jax.random.key(5), (3, 16))
    noise, k = jax.random.normal(KEY, x.shape), 20
    b, t, s = CHAIN.betas[k], (k + 1) / N, k / N
    predict = gaussian(0.5).predict(CHAIN)
    score = -predict(x, t).eps / CHAIN.sigma(t)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    mean = (2 - np.sqrt(1 - b)) * x + b * score
    close(one_step(solvers.reverse_diffusion(CHAIN), predict, x, t, s), mean + np.sqrt(b) * noise)
    close(one_step(solvers.reverse_diffusion(CHAIN), predict, x, t, s, remaining=1), mean)
    close(one_step(solvers.probability_flow(CHAIN), predict, x, t, s), mean - b * score / 2)

    vp, dt = VPLinear(), 0.02
    predict = gaussian(0.5).predict(vp)
    score, rate = -predict(x, t).eps / vp.sigma(t), 0.1 + 19.9 * t
    mean = x - (-0.5 * rate * x - rate * score) * dt
    solver = solvers.euler_maruyama(vp)
    noisy = mean + np.sqrt(rate * dt) * noise
    close(one_step(solver, predict, x, t, t - dt), noisy)
    close(one_step(solver, predict, x, t, t - dt, remaining=1), mean)


def test_published_correctors(x64):
    """Step lengths of algorithms 4 and 5, whose alpha is 1 - beta; norms by batch and by sample."""
    x, k = jax.random.normal(jax.random.key(5), (3, 16)), 20
    b, t, s = CHAIN.betas[k], (k + 1) / N, k / N
    predict = gaussian(0.5).predict(CHAIN)
    score = -predict(x, t).eps / CHAIN.sigma(t)
    noise = jax.random.normal(jax.random.fold_in(KEY, 0), x.shape)
    norm = functools.partial(jnp.linalg.norm, axis=1, keepdims=True)
    sizes = {
        "batch": norm(noise).mean() / norm(score).mean(),
        "sample": norm(noise) / norm(score),
        "annealed": CHAIN.sigma(t),
    }
    for name, size in sizes.items():
        if name == "annealed":
            corrector = solvers.annealed_langevin(CHAIN, 0.1)
        else:
            corrector = solvers.langevin(CHAIN, 0.1, norms=name)
        e = 2 * (1 - b) * (0.1 * size) ** 2
        got = one_step(corrector, predict, x, t, s)
        np.testing.assert_allclose(got, x + e * score + jnp.sqrt(2 * e) * noise, rtol=1e-9)


def test_corrector_first_then_predictor_at_the_same_time(x64):
    schedule, t, s = VPLinear(), 0.5, 0.4
    predict, x = gaussian(0.5).predict(schedule), jnp.ones((2, 16))
    corrector, predictor = solvers.annealed_langevin(schedule), solvers.ddim(schedule)
    span = Span(jnp.asarray(t), jnp.asarray(s), jnp.int32(0), jnp.int32(2), ((), ()))
    got, _ = solvers.predictor_corrector(predictor, corrector).step(predict, x, ((), ()), span, KEY)
    middle, _ = corrector.step(predict, x, (), span, jax.random.fold_in(KEY, 0))
    expected, _ = predictor.step(predict, middle, (), span, None)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "make", [solvers.multistep, solvers.singlestep, solvers.heun, solvers.ancestral]
)
def test_any_predictor_with_any_corrector(make):
    """Calls of both are counted, and the law stays what it is."""
    schedule, std = VPLinear(), 0.5
    predictor, corrector = make(schedule), solvers.langevin(schedule, 0.1, steps=2)
    both = solvers.predictor_corrector(predictor, corrector)
    ts = timesteps.log_snr(schedule, 60)
    predict, x = gaussian(std).predict(schedule), jax.random.normal(jax.random.key(0), (2000, 16))
    solution = solve(both, predict, x, ts, KEY)
    assert solution.nfe == 60 * (predictor.evaluations + 2)
    assert abs(solution.x.std() / std - 1) < 0.05


def test_a_corrector_alone_is_annealed_langevin_dynamics():
    schedule = LADDER
    ts = timesteps.log_snr(schedule, 400)
    solver = solvers.langevin(schedule, 0.16, steps=2)
    x = ends(schedule, solver, gaussian(0.25).predict(schedule), ts, n=500)
    assert abs(x.std() / 0.25 - 1) < 0.1


def test_from_a_config():
    schedule = VPLinear()
    made = solvers.recipe(
        "predictor_corrector", schedule, 21, predictor="probability_flow", corrector="langevin"
    )
    x = jax.random.normal(jax.random.key(0), (4, 16))
    keys = jax.random.split(KEY, 4)
    whole = solvers.run(made, gaussian(0.5).predict(schedule), x, keys)
    part = solvers.run(made, gaussian(0.5).predict(schedule), x[:2], keys[:2])
    assert whole.nfe == 21
    np.testing.assert_allclose(whole.x[:2], part.x, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: solvers.langevin(s, norms="l2"), "unknown norms 'l2'"),
        (lambda s: solvers.annealed_langevin(s, steps=0), "at least 1 step"),
        (
            lambda s: solvers.recipe("predictor_corrector", s, 21, corrector="x"),
            "unknown corrector 'x'",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make(VPLinear())
