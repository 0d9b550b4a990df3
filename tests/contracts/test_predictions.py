"""What every parametrisation owes: decode and encode are inverse, and all agree on one truth."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, prediction
from diffjax.prediction import Prediction, edm, learned_range, network_predict
from diffjax.schedules import EDM, VE, Cosine, Discrete, FlowMatching, SubVP, VPLinear

SCHEDULES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "cosine": Cosine(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(1000),
}
PARAMETRIZATIONS = {
    **{
        name: prediction.parametrization(name) for name in ("eps", "x0", "v", "score", "flow", "ve")
    },
    "edm": edm(0.5),
    "edm_other": edm(1.3),
    "learned_range_eps": learned_range(prediction.EPS),
    "learned_range_v": learned_range(prediction.V),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)


def example(schedule, dtype):
    """A state and a consistent prediction of it at times over the whole range."""
    x0_key, noise_key, variance_key = jax.random.split(jax.random.key(3), 3)
    t = jnp.linspace(schedule.t_min, schedule.t_max, 7, dtype=dtype)
    x0 = jax.random.normal(x0_key, (7, 2, 2, 3), dtype)
    noise = jax.random.normal(noise_key, x0.shape, dtype)
    x = (
        prediction.expand(schedule.alpha(t), x0) * x0
        + prediction.expand(schedule.sigma(t), x0) * noise
    )
    return x, t, Prediction(x0, noise, jax.random.uniform(variance_key, x0.shape, dtype))


@each_schedule
@each
def test_round_trip_through_the_networks_output(schedule, parametrization, x64):
    x, t, truth = example(schedule, jnp.float64)
    output = parametrization.encode(schedule, x, t, truth)
    back = parametrization.decode(schedule, x, t, output)
    if back.variance is None:
        truth = truth._replace(variance=None)
    chex.assert_trees_all_close(back, truth, rtol=1e-7, atol=1e-7)


@each_schedule
@each
def test_scalar_time_is_per_sample_time(schedule, parametrization):
    x, t, truth = example(schedule, jnp.float32)
    middle = t[3]
    output = parametrization.encode(schedule, x, middle, truth)
    scalar = parametrization.decode(schedule, x, middle, output)
    vector = parametrization.decode(schedule, x, jnp.full(7, middle), output)
    chex.assert_trees_all_close(scalar, vector, rtol=1e-5, atol=1e-6)


@each_schedule
@each
def test_a_prediction_is_consistent_in_float32(schedule, parametrization):
    """x = alpha x0 + sigma eps for whatever the network says."""
    x, t, _ = example(schedule, jnp.float32)
    channels = 6 if parametrization in list(PARAMETRIZATIONS.values())[-2:] else 3
    output = jax.random.normal(jax.random.key(1), (*x.shape[:-1], channels))
    got = parametrization.decode(schedule, x, t, output)
    alpha, sigma = (prediction.expand(f(t), x) for f in (schedule.alpha, schedule.sigma))
    rebuilt = alpha * got.x0 + sigma * got.eps
    np.testing.assert_allclose(rebuilt, x, rtol=2e-4, atol=2e-4 * float(jnp.abs(x).max()))


@each
def test_network_predict_recovers_the_exact_prediction(parametrization, x64):
    """A network whose output is encoded from the truth makes ``predict`` the truth."""
    schedule = VPLinear()
    exact = analytic.Mixture(jnp.array([[0.5, -1.0], [1.0, 1.0]]), 0.3).predict(schedule)
    t = jnp.array([0.1, 0.5, 0.9])
    x = jax.random.normal(jax.random.key(0), (3, 2))
    truth = exact(x, t)._replace(variance=jnp.full((3, 2), 0.25))
    seen = {}

    def network(scaled, label):
        seen.update(scaled=scaled, label=label)
        return parametrization.encode(schedule, x, t, truth)

    got = network_predict(network, schedule, parametrization)(x, t)
    chex.assert_trees_all_close((got.x0, got.eps), (truth.x0, truth.eps), rtol=1e-9)
    chex.assert_trees_all_close(
        seen["scaled"], prediction.expand(parametrization.scale(schedule, t), x) * x
    )
    assert seen["label"].shape == (3,)
