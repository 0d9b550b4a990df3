"""What every schedule owes: a row in the table, and all of this holds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.schedules import (
    EDM,
    VE,
    Cosine,
    Discrete,
    FlowMatching,
    SubVP,
    VPLinear,
    diffusion_squared,
    drift,
    half_log_snr,
    perturb,
    prior,
)

SCHEDULES = {
    "vp_linear": VPLinear(),
    "vp_linear_other": VPLinear(beta_min=0.3, beta_max=12.0, t_min=1e-5),
    "sub_vp": SubVP(),
    "sub_vp_small_t": SubVP(t_min=1e-5),
    "cosine": Cosine(),
    "ve": VE(),
    "ve_other": VE(sigma_min=0.02, sigma_max=100.0),
    "edm": EDM(),
    "flow_matching": FlowMatching(),
    "discrete_linear": Discrete.linear(1000, 1e-4, 0.02),
    "discrete_cosine": Discrete.cosine(1000),
    "discrete_scaled_linear": Discrete.scaled_linear(1000),
    "discrete_short": Discrete.linear(10, 1e-3, 0.3),
}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def times(schedule, n=400):
    """Times over the whole range, dense at both ends, the ends included."""
    u = np.linspace(0, 1, n)
    u = np.unique(np.concatenate([u, u**4, 1 - u**4]))
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * u
    return np.clip(t, schedule.t_min, schedule.t_max)


@each
def test_is_a_schedule(schedule):
    assert isinstance(schedule, schedules.Schedule)
    assert 0 < schedule.t_min < schedule.t_max


@each
def test_inverse_float64(schedule, x64):
    t = times(schedule)
    lam = half_log_snr(schedule, t)
    assert lam.dtype == jnp.float64
    np.testing.assert_allclose(schedule.time(lam), t, rtol=1e-10)


@each
def test_inverse_float32(schedule):
    # Relative to the time itself; a float32 lambda cannot place VE's earliest times better than
    # its own rounding, 5e-7 / log(s_max / s_min) of the range, so that much is allowed.
    t = times(schedule).astype(np.float32)
    lam = half_log_snr(schedule, t)
    assert lam.dtype == jnp.float32
    floor = 1e-7 * schedule.t_max if isinstance(schedule, VE) else 0.0
    np.testing.assert_allclose(schedule.time(lam), t, rtol=1e-5, atol=floor)


@each
def test_float32_follows_float64(schedule):
    t = times(schedule).astype(np.float32)
    single = [f(t) for f in (schedule.alpha, schedule.sigma, lambda t: half_log_snr(schedule, t))]
    with jax.enable_x64(True):
        t64 = t.astype(np.float64)
        double = [
            np.asarray(f(t64))
            for f in (schedule.alpha, schedule.sigma, lambda t: half_log_snr(schedule, t))
        ]
    # A float32 time is placed within a chain's interval of 1e-3 to 3e-5 of its length, and the last
    # interval of the cosine chain spans 3.5 in log alpha.
    tolerance = 1e-4 if isinstance(schedule, Discrete) else 1e-5
    for one, two in zip(single[:2], double[:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance)
    np.testing.assert_allclose(single[2], double[2], atol=tolerance)


@each
def test_lambda_falls_with_time(schedule, x64):
    assert (jnp.diff(half_log_snr(schedule, times(schedule))) < 0).all()


@each
def test_finite_values_and_gradients_at_both_ends(schedule):
    for t in (schedule.t_min, schedule.t_max):
        for function in (
            schedule.alpha,
            schedule.sigma,
            lambda t: half_log_snr(schedule, t),
            lambda t: drift(schedule, t),
            lambda t: diffusion_squared(schedule, t),
            lambda t: schedule.time(half_log_snr(schedule, t)),
        ):
            value, slope = jax.value_and_grad(lambda t, f=function: jnp.asarray(f(t)))(float(t))
            assert jnp.isfinite(value) and jnp.isfinite(slope)


@each
def test_scalar_and_per_sample_times_under_jit_and_vmap(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 5)
    for function in (schedule.alpha, schedule.sigma, lambda t: drift(schedule, t)):
        batch = function(t)
        chex.assert_shape(batch, (5,))
        singles = jnp.stack([function(one) for one in t])
        for other in (singles, jax.jit(function)(t), jax.vmap(function)(t)):
            chex.assert_trees_all_close(batch, other, rtol=1e-5, atol=1e-6)


@each
def test_is_a_pytree_argument_of_jit(schedule):
    traces = []

    @jax.jit
    def scales(schedule, t):
        traces.append(1)
        return schedule.alpha(t), schedule.sigma(t), schedule.time(half_log_snr(schedule, t))

    t = jnp.float32(0.5 * (schedule.t_min + schedule.t_max))
    for _ in range(2):
        alpha, sigma, back = scales(schedule, t)
    assert len(traces) == 1
    chex.assert_trees_all_close((alpha, sigma), (schedule.alpha(t), schedule.sigma(t)), rtol=1e-5)
    chex.assert_trees_all_close(back, t, rtol=1e-5)


@each
def test_rates_are_those_of_the_sde(schedule, x64):
    """The moment equations of the SDE: alpha' = f alpha, (sigma^2)' = 2 f sigma^2 + g^2."""
    # Away from a chain's nodes, where its derivative jumps.
    t = np.linspace(schedule.t_min, schedule.t_max, 24)[1:-1] + 1.7e-5 * schedule.t_max
    step = 1e-7 * schedule.t_max

    def central(f):
        return (f(t + step) - f(t - step)) / (2 * step)

    f, g2 = drift(schedule, t), diffusion_squared(schedule, t)
    np.testing.assert_allclose(central(schedule.alpha), f * schedule.alpha(t), rtol=1e-5, atol=1e-7)
    variance_rate = central(lambda t: schedule.sigma(t) ** 2)
    np.testing.assert_allclose(variance_rate, 2 * f * schedule.sigma(t) ** 2 + g2, rtol=1e-5)


@each
def test_perturb_and_prior_have_the_marginal_moments(schedule, key):
    n, data_mean, data_std = 40_000, 0.3, 0.5
    data_key, noise_key, prior_key = jax.random.split(key, 3)
    x0 = data_mean + data_std * jax.random.normal(data_key, (n, 1))
    noise = jax.random.normal(noise_key, x0.shape)
    for fraction in (0.1, 0.5, 1.0):
        t = schedule.t_min + fraction * (schedule.t_max - schedule.t_min)
        x = perturb(schedule, x0, jnp.full((n,), t), noise)
        start = prior(schedule, t, x0.shape, prior_key, mean=data_mean, std=data_std)
        scale = float(jnp.std(x))
        assert abs(float(x.mean() - start.mean())) < 0.03 * scale
        assert abs(float(start.std()) / scale - 1) < 0.02


@each
def test_default_prior_is_noise_alone(schedule, key):
    start = prior(schedule, schedule.t_max, (20_000, 1), key)
    assert abs(float(start.std() / schedule.sigma(schedule.t_max)) - 1) < 0.02


def test_prior_with_a_key_per_sample_depends_on_that_key_alone(key):
    keys = jax.random.split(key, 6)
    schedule = VPLinear()
    whole = prior(schedule, 1.0, (6, 3, 2), keys)
    parts = jnp.concatenate([prior(schedule, 1.0, (2, 3, 2), keys[i : i + 2]) for i in (0, 2, 4)])
    chex.assert_trees_all_equal(whole, parts)


def test_a_schedule_can_be_differentiated_through():
    slope = jax.grad(lambda s: s.alpha(0.5))(VPLinear()).beta_max
    step = 1e-2
    finite = (VPLinear(beta_max=20 + step).alpha(0.5) - VPLinear(beta_max=20 - step).alpha(0.5)) / (
        2 * step
    )
    chex.assert_trees_all_close(slope, finite, rtol=1e-3)
