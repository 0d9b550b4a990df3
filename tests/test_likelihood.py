"""Densities by the ODE and the decoder, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, likelihood, prediction
from diffjax.metrics import density_bits_per_dim
from diffjax.prediction import Prediction
from diffjax.schedules import EDM, VE, Cosine, Discrete, FlowMatching, SubVP, VPLinear

# The decoder.


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (0.97, 0.0074), (-3.0, 2.0), (0.3, 30.0)])
def test_probabilities_of_all_integers_sum_to_one(levels, mean, std, x64):
    x0 = 2 * jnp.arange(levels) / (levels - 1) - 1
    logs = likelihood.decoder_log_probability(x0, mean, jnp.log(std), levels=levels)
    np.testing.assert_allclose(jnp.exp(logs).sum(), 1, atol=1e-9)


def test_decoder_is_the_normal_distributions_integral_over_bins(x64):
    x0 = 2 * jnp.arange(256) / 255 - 1
    edges = jnp.concatenate([jnp.array([-jnp.inf]), x0[:-1] + 1 / 255, jnp.array([jnp.inf])])
    exact = jnp.diff(jax.scipy.stats.norm.cdf((edges - 0.2) / 0.05))
    got = jnp.exp(likelihood.decoder_log_probability(x0, 0.2, jnp.log(0.05)))
    np.testing.assert_allclose(got, exact, atol=2e-4)


def test_gradients_of_the_decoder_are_finite_far_from_the_data():
    gradient = jax.grad(
        lambda mean: likelihood.decoder_log_probability(jnp.linspace(-1, 1, 9), mean, -5.0).sum()
    )
    assert jnp.isfinite(jax.vmap(gradient)(jnp.linspace(-4.0, 4.0, 33))).all()


# The density by the ODE.

SCHEDULES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "cosine": Cosine(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(100),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_exact_on_a_gaussian(schedule, x64):
    covariance = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
    data = analytic.Gaussian(np.array([0.3, -0.2, 0.1]), covariance)
    x = data.sample(jax.random.key(0), 4)
    predict = data.predict(schedule)
    got = jax.jit(
        lambda x: likelihood.log_density(
            schedule,
            predict,
            x,
            probe="exact",
            log_prior=lambda x: data.log_density(schedule, x, schedule.t_max),
            rtol=1e-7,
            atol=1e-7,
        )
    )(x)
    exact = data.log_density(schedule, x, schedule.t_min)
    np.testing.assert_allclose(got.nats, exact, atol=1e-5)


@pytest.mark.parametrize("probe", ["rademacher", "exact"])
def test_one_rademacher_probe_is_exact_where_directions_are_alike(probe, x64):
    """v . (c v) = c D; and the usual prior, N(0, sigma_T^2), is off by no more than alpha_T^2."""
    schedule, data = VPLinear(t_min=1e-5), analytic.Mixture(np.zeros((1, 4, 4)), 1.0)
    x = data.sample(jax.random.key(0), 3)
    got = likelihood.log_density(
        schedule, data.predict(schedule), x, jax.random.key(1), probe=probe
    )
    exact = data.log_density(schedule, x, schedule.t_min)
    bits, expected = (density_bits_per_dim(nats, (4, 4)) for nats in (got.nats, exact))
    np.testing.assert_allclose(bits, expected, atol=4e-5)


MIXTURE = analytic.Mixture(
    np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], -1), 0.15
)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_are_unbiased_on_a_mixture(probe):
    schedule, repeats = VPLinear(), 300
    x = jnp.tile(MIXTURE.sample(jax.random.key(0), 3), (repeats, 1))
    predict = MIXTURE.predict(schedule)
    keys = jax.random.split(jax.random.key(1), len(x))
    run = jax.jit(lambda x, keys: likelihood.log_density(schedule, predict, x, keys, probe=probe))
    got = run(x, keys).nats.reshape(repeats, 3)
    exact = MIXTURE.log_density(schedule, x[:3], schedule.t_min)
    error = got.std(axis=0) / np.sqrt(repeats)
    assert (jnp.abs(got.mean(axis=0) - exact) < 4 * error + 1e-3).all() and (error > 0).all()


def test_exact_on_a_mixture_in_float32():
    schedule = EDM()
    x = MIXTURE.sample(jax.random.key(0), 16)
    got = likelihood.log_density(schedule, MIXTURE.predict(schedule), x, probe="exact")
    exact = MIXTURE.log_density(schedule, x, schedule.t_min)
    np.testing.assert_allclose(got.nats, exact, atol=1e-3)


def test_probes_by_key_and_by_sample():
    schedule, x = VPLinear(), MIXTURE.sample(jax.random.key(0), 4)
    keys = jax.random.split(jax.random.key(1), 4)
    run = jax.jit(
        lambda x, keys: likelihood.log_density(schedule, MIXTURE.predict(schedule), x, keys).nats
    )
    whole, part = run(x, keys), run(x[:2], keys[:2])
    np.testing.assert_allclose(whole[:2], part, atol=2e-3)


def test_evaluations_of_guidance_are_counted():
    schedule, x = VPLinear(), MIXTURE.sample(jax.random.key(0), 2)
    plain = MIXTURE.predict(schedule)
    twice = prediction.with_evaluations(plain, 2)
    one, two = (likelihood.log_density(schedule, p, x, probe="exact").nfe for p in (plain, twice))
    assert two == 2 * one > 20


def test_gradient_of_a_density_is_the_score(x64):
    schedule, x = VPLinear(), MIXTURE.sample(jax.random.key(0), 2)
    predict = MIXTURE.predict(schedule)

    def density(x):
        return likelihood.log_density(schedule, predict, x, probe="exact").nats.sum()

    expected = jax.grad(lambda x: MIXTURE.log_density(schedule, x, schedule.t_min).sum())(x)
    np.testing.assert_allclose(jax.grad(density)(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("to_centres", "width"),
    [
        (lambda n: n / 127.5 - 1, 2 / 255),
        (lambda n: 2 * (n + 0.5) / 256 - 1, 2 / 256),
        (lambda n: (n + 0.5) / 256, 1 / 256),
    ],
)
def test_dequantised_uniform_bytes_have_eight_bits(to_centres, width):
    """For any range of the data: bytes that are all alike probable need 8 bits each."""
    n = jax.random.randint(jax.random.key(0), (100, 20), 0, 256)
    x = to_centres(n.astype(jnp.float32))
    keys = jax.random.split(jax.random.key(1), 100)
    for key in (keys, jax.random.key(1)):
        y = likelihood.dequantise(key, x, width)
        assert (jnp.abs(y - x) <= width / 2 + 1e-6).all()
        np.testing.assert_allclose((y - x).std(), width / np.sqrt(12), rtol=0.05)
    log_density = -20 * jnp.log(256 * width)  # uniform over all bins
    bits = density_bits_per_dim(log_density, (20,), bin_width=width)
    np.testing.assert_allclose(bits, 8, rtol=1e-6)


# Mistakes.


def known(schedule, x0):
    return lambda x, t: Prediction(x0, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: likelihood.chain(VPLinear()), "VPLinear is no discrete chain.* give ts"),
        (lambda x: likelihood.chain(VPLinear(), [1.0, 0.5, 1e-3]), "append 0"),
        (lambda x: likelihood.chain(VE(), [1.0, 0.5, 0.0]), "without noise there"),
        (lambda x: likelihood.chain(VPLinear(), [1.0, 0.0]), "at least 2 steps"),
        (
            lambda x: likelihood.log_density(VPLinear(), known(None, x), x, probe="all"),
            "unknown probe 'all'",
        ),
        (lambda x: likelihood.log_density(VPLinear(), known(None, x), x), "give a key"),
        (
            lambda x: likelihood.log_density(
                VPLinear(), known(None, x), x, probe="exact", method="rk4"
            ),
            "unknown ODE method 'rk4'",
        ),
        (
            lambda x: likelihood.bound_term(
                likelihood.chain(Discrete.linear(10)), Prediction(x, x), x, 1, variance="learned"
            ),
            "needs a network with learned variances",
        ),
        (
            lambda x: likelihood.bound_term(
                likelihood.chain(Discrete.linear(10)), Prediction(x, x), x, 1, variance="beta"
            ),
            "unknown variance 'beta'",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((2, 3)))
