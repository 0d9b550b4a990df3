"""Losses, weightings and the times of training, against their definitions and closed forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import losses, prediction
from diffjax.analytic import Gaussian
from diffjax.losses import Slots, regression, weighted_x0
from diffjax.prediction import Prediction, from_x0, network_predict
from diffjax.schedules import EDM, Cosine, Discrete, FlowMatching, VPLinear, expand, perturb

SCHEDULES = {"vp": VPLinear(), "cosine": Cosine(), "edm": EDM(), "flow": FlowMatching()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def example(schedule, dtype=None):
    keys = jax.random.split(jax.random.key(0), 2)
    x0, noise = (jax.random.normal(key, (6, 2, 3, 1), dtype or float) for key in keys)
    ends = np.log([schedule.t_min, 0.9 * schedule.t_max])
    return x0, jnp.exp(jnp.linspace(*ends, 6, dtype=x0.dtype)), noise


def guess(schedule):
    """A prediction that is neither right nor constant."""
    return lambda x, t: from_x0(schedule, x, t, jnp.tanh(x) - 0.2)


def by_hand(schedule, x0, t, noise):
    """State, truth and guess, with the scales shaped to fit."""
    alpha, sigma = (expand(f(t), x0) for f in (schedule.alpha, schedule.sigma))
    x = alpha * x0 + sigma * noise
    guessed = jnp.tanh(x) - 0.2
    return alpha, sigma, x, guessed, (x - alpha * guessed) / sigma


def mean_square(error):
    return np.mean(np.square(np.asarray(error)).reshape(len(error), -1), axis=1)


# Targets.


def test_every_target_by_its_definition(x64):
    schedule = VPLinear()
    x0, t, noise = example(schedule)
    alpha, sigma, _, x0_hat, eps_hat = by_hand(schedule, x0, t, noise)
    # d alpha/dt = -beta alpha / 2 and d sigma/dt = beta alpha^2 / (2 sigma).
    beta = expand(schedule.beta_min + t * (schedule.beta_max - schedule.beta_min), x0)
    flow = lambda x0, eps: -0.5 * beta * alpha * x0 + 0.5 * beta * alpha**2 / sigma * eps  # noqa: E731
    expected = {
        "x0": x0_hat - x0,
        "eps": eps_hat - noise,
        "v": (alpha * eps_hat - sigma * x0_hat) - (alpha * noise - sigma * x0),
        "score": -eps_hat / sigma + noise / sigma,
        "flow": flow(x0_hat, eps_hat) - flow(x0, noise),
    }
    assert expected.keys() == losses.TARGETS.keys()
    for target, error in expected.items():
        got = regression(guess(schedule), schedule, x0, t, noise, target)
        chex.assert_shape(got, (6,))
        np.testing.assert_allclose(got, mean_square(error), rtol=1e-9)


def test_flow_target_of_the_straight_path_is_noise_minus_data(x64):
    schedule = FlowMatching()
    x0, t, noise = example(schedule)
    *_, x0_hat, eps_hat = by_hand(schedule, x0, t, noise)
    got = regression(guess(schedule), schedule, x0, t, noise, "flow")
    np.testing.assert_allclose(got, mean_square(eps_hat - x0_hat - noise + x0), rtol=1e-9)


@each_schedule
@pytest.mark.parametrize("target", losses.TARGETS)
def test_scalar_time_is_per_sample_time(schedule, target):
    x0, _, noise = example(schedule)
    t = 0.3 * schedule.t_max
    one, many = (
        regression(guess(schedule), schedule, x0, time, noise, target)
        for time in (t, jnp.full(6, t))
    )
    chex.assert_trees_all_close(one, many, rtol=1e-4)


@each_schedule
def test_the_truth_costs_nothing(schedule):
    x0, t, noise = example(schedule)
    for target in losses.TARGETS:
        got = regression(lambda x, t: Prediction(x0, noise), schedule, x0, t, noise, target)
        np.testing.assert_array_equal(got, np.zeros(6))


def test_the_network_is_called_once_on_the_perturbed_data():
    schedule, calls = VPLinear(), []
    x0, t, noise = example(schedule)

    def predict(x, t):
        calls.append((x, t))
        return Prediction(x, x)

    regression(predict, schedule, x0, t, noise)
    weighted_x0(predict, schedule, x0, t, noise, losses.v_weight())
    assert len(calls) == 2
    for x, time in calls:
        chex.assert_trees_all_equal((x, time), (perturb(schedule, x0, t, noise), t))


# Weightings.


@each_schedule
def test_eps_weight_is_the_simple_loss(schedule, x64):
    x0, t, noise = example(schedule)
    got = weighted_x0(guess(schedule), schedule, x0, t, noise, losses.eps_weight())
    expected = regression(guess(schedule), schedule, x0, t, noise, "eps")
    np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), Discrete.linear(100)])
def test_v_weight_is_the_loss_on_v_where_variance_is_preserved(schedule, x64):
    x0, t, noise = example(schedule)
    got = weighted_x0(guess(schedule), schedule, x0, t, noise, losses.v_weight())
    expected = regression(guess(schedule), schedule, x0, t, noise, "v")
    np.testing.assert_allclose(got, expected, rtol=1e-8)


@each_schedule
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_weight_is_the_plain_loss_on_the_networks_output(schedule, sigma_data, x64):
    x0, t, noise = example(schedule)
    parametrization = prediction.edm(sigma_data)
    alpha, sigma, x, *_ = by_hand(schedule, x0, t, noise)
    outputs = {}

    def network(scaled, label):
        outputs["raw"] = jnp.sin(3 * scaled) + expand(label, scaled)
        return outputs["raw"]

    predict = network_predict(network, schedule, parametrization)
    got = weighted_x0(predict, schedule, x0, t, noise, losses.edm_weight(sigma_data))
    # Karras et al. 2022, table 1, in the coordinates x / alpha with noise s = sigma / alpha.
    s = sigma / alpha
    skip = sigma_data**2 / (s**2 + sigma_data**2)
    out = s * sigma_data / jnp.sqrt(s**2 + sigma_data**2)
    target = (x0 - skip * x / alpha) / out
    np.testing.assert_allclose(got, mean_square(outputs["raw"] - target), rtol=1e-7)


def test_weightings_in_closed_form(x64):
    lam = np.linspace(-6, 6, 101)
    snr = np.exp(2 * lam)
    closed = {
        "snr": ({}, snr),
        "v": ({}, snr + 1),
        "min_snr": ({"gamma": 2.5}, np.minimum(snr, 2.5)),
        "edm": ({"sigma_data": 0.4}, (1 / snr + 0.16) / (0.16 / snr)),
        # e^-2 sigmoid(log SNR + 2) = SNR sigmoid(-2 - log SNR): the loss on eps, times a sigmoid.
        "sigmoid": ({"bias": -2.0}, snr / (1 + np.exp(2 + 2 * lam))),
    }
    assert closed.keys() == losses.WEIGHTINGS.keys()
    for name, (options, expected) in closed.items():
        got = losses.WEIGHTINGS[name](**options)(jnp.asarray(lam))
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_weights_are_finite_in_float32_over_the_ranges_of_all_schedules():
    lam = jnp.array([-12.0, 0.0, 12.0])
    for make in losses.WEIGHTINGS.values():
        assert jnp.isfinite(make()(lam)).all() and (make()(lam) > 0).all()


@each_schedule
@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_float32_holds_and_time_may_be_shared(schedule, weighting):
    x0, t, noise = example(schedule)
    weigh = losses.WEIGHTINGS[weighting]()

    def run(x0, t, noise):
        predict = network_predict(lambda x, label: jnp.tanh(x), schedule, prediction.edm())
        return weighted_x0(predict, schedule, x0, t, noise, weigh)

    single = run(x0, t, noise)
    assert single.dtype == jnp.float32 and single.shape == (6,)
    shared = run(x0, t[3], noise)
    np.testing.assert_allclose(shared[3], single[3], rtol=1e-5)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(v, np.float64)) for v in (x0, t, noise)]
        np.testing.assert_allclose(single, run(*wide), rtol=2e-3)


# Values that a network must reach.


def test_a_network_that_says_nothing_has_a_simple_loss_of_one(key):
    schedule, n = Discrete.linear(1000), 20_000
    keys = jax.random.split(key, 3)
    x0, noise = (jax.random.normal(k, (n, 2)) for k in keys[:2])
    t = losses.discrete_times(schedule, keys[2], Slots(jnp.arange(n), n))
    silent = network_predict(lambda x, label: jnp.zeros_like(x), schedule, prediction.EPS)
    got = regression(silent, schedule, x0, t, noise)
    # A chi-square variable a number: standard deviation sqrt(2).
    assert abs(float(got.mean()) - 1) < 4 * np.sqrt(2 / (2 * n))


@pytest.mark.parametrize(("variance", "best"), [(1.0, 0.27551), (0.25, 0.17305)])
def test_least_simple_loss_of_a_gaussian(variance, best, x64):
    """DDPM's chain and the exact prediction of N(0, s^2); the loss is quadratic in data and noise,
    so four points with their second moments give the expectation exactly."""
    chain = Discrete.linear(1000)
    predict = Gaussian(np.zeros(1), variance * np.eye(1)).predict(chain)
    t = jnp.arange(1, 1001) / 1000
    found = [
        regression(predict, chain, jnp.full((1000, 1), x0), t, jnp.full((1000, 1), noise)).mean()
        for x0 in (-np.sqrt(variance), np.sqrt(variance))
        for noise in (-1.0, 1.0)
    ]
    np.testing.assert_allclose(np.mean(found), best, atol=5e-6)


def test_the_same_as_training_would_find_it(key):
    chain, n = Discrete.linear(1000), 40_000
    keys = jax.random.split(key, 3)
    x0, noise = (jax.random.normal(k, (n, 1)) for k in keys[:2])
    t = losses.discrete_times(chain, keys[2], Slots(jnp.arange(n), n))
    got = regression(Gaussian(np.zeros(1), np.eye(1)).predict(chain), chain, x0, t, noise)
    assert abs(float(got.mean()) - 0.27551) < 4 * float(got.std()) / np.sqrt(n)


def test_gradients_and_compilation():
    schedule = VPLinear()
    x0, t, noise = example(schedule)

    def total(w):
        predict = network_predict(lambda x, label: w * x, schedule, prediction.V)
        simple = regression(predict, schedule, x0, t, noise, "v")
        weighted = weighted_x0(predict, schedule, x0, t, noise, losses.min_snr_weight())
        return (simple + weighted).sum()

    step = 1e-2
    numeric = (total(0.3 + step) - total(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.3), numeric, rtol=1e-3)


# Times.

N = 4000
ALL = Slots(jnp.arange(N), N)
each_times = pytest.mark.parametrize("times", losses.TIMES.values(), ids=losses.TIMES)


@each_times
def test_times_are_in_range_and_do_not_depend_on_how_the_batch_is_split(times, key):
    chain = Discrete.linear(1000)
    for schedule in [chain] if times is losses.discrete_times else [VPLinear(), EDM(), chain]:
        draw = jax.jit(functools.partial(times, schedule))
        whole = draw(key, ALL)
        chex.assert_shape(whole, (N,))
        assert whole.dtype == jnp.float32
        assert (np.float32(schedule.t_min) <= whole).all() and (whole <= schedule.t_max).all()
        rows = np.array([3, 900, 17])
        part = draw(key, Slots(jnp.asarray(rows), N))
        chex.assert_trees_all_close(part, whole[rows], rtol=1e-6)
        assert (draw(jax.random.key(1), ALL) != whole).mean() > 0.9


def test_uniform_times_are_uniform_and_independent(key):
    schedule = EDM(t_min=0.5, t_max=2.0)
    t = losses.uniform_times(schedule, key, ALL)
    assert stats.kstest(t, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(t[1:], t[:-1])[0, 1]) < 4 / np.sqrt(N)


def test_stratified_times_spread_evenly(key):
    schedule, n = EDM(t_min=1.0, t_max=3.0), 50
    slots = Slots(jnp.arange(n), n)
    batches = jax.vmap(lambda k: losses.stratified_times(schedule, k, slots))(
        jax.random.split(key, 2000)
    )
    # One time in each n-th of the range, at the same place in it.
    gaps = np.diff(np.sort(batches, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 2 / n, atol=1e-5)
    # Each row alone is uniform, so that the mean loss is unbiased ...
    for row in (0, 31):
        assert stats.kstest(batches[:, row], stats.uniform(1, 2).cdf).pvalue > 1e-3
    # ... and of a batch's mean hardly any variance is left:
    # independent draws leave (t_max - t_min)^2 / 12 n, n times as much.
    np.testing.assert_allclose(np.var(batches.mean(1)), (2 / n) ** 2 / 12, rtol=0.15)


def test_log_normal_times(key):
    t = losses.log_normal_times(EDM(1e-8, 1e8), key, ALL)
    assert stats.kstest(np.log(t), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    # On another schedule the noise levels are the same, the times its own.
    chain = VPLinear()
    t = losses.log_normal_times(chain, key, ALL, mean=-0.5, std=0.8)
    level = np.log(chain.sigma(t) / chain.alpha(t))
    assert stats.kstest(level, stats.norm(-0.5, 0.8).cdf).pvalue > 1e-3
    # What falls outside the range goes to its ends.
    t = losses.log_normal_times(EDM(t_min=np.exp(-1.2), t_max=80.0), key, ALL)
    assert abs(float((t == t.min()).mean()) - 0.5) < 4 * 0.5 / np.sqrt(N)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_discrete_times_are_exactly_those_of_the_chain(steps, key):
    chain = Discrete.linear(steps)
    nodes = (np.arange(1, steps + 1) / steps).astype(np.float32)
    eager = losses.discrete_times(chain, key, ALL)
    jitted = jax.jit(lambda key: losses.discrete_times(chain, key, ALL))(key)
    for t in (eager, jitted):
        assert set(np.asarray(t)) <= set(nodes)
        index = np.asarray(chain.index(t))
        np.testing.assert_allclose(index, np.round(index), atol=1e-4)
    counts = np.bincount(np.round(chain.index(eager)).astype(int), minlength=steps)
    assert len(counts) == steps and counts.min() >= (steps < 1000)
    if steps > 1:
        assert stats.chisquare(counts).pvalue > 1e-3


def test_slots_give_each_row_its_own_key(key):
    keys = Slots(jnp.array([5, 2]), 8).keys(key)
    assert keys[0] == jax.random.fold_in(key, 5) and keys[1] == jax.random.fold_in(key, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x0, t: regression(guess(EDM()), EDM(), x0, t, x0, "epsilon"),
            "unknown loss target 'epsilon': choose one of eps, flow, score, v, x0",
        ),
        (
            lambda x0, t: losses.discrete_times(EDM(), jax.random.key(0), ALL),
            "discrete times need a Discrete schedule, not EDM; use 'uniform' times",
        ),
        (
            lambda x0, t: regression(guess(EDM()), EDM(), x0, jnp.ones(5), x0),
            r"time of shape \(5,\) does not fit",
        ),
    ],
)
def test_mistakes(call, message):
    x0, t, _ = example(EDM())
    with pytest.raises(ValueError, match=message):
        call(x0, t)
