"""Parametrisations against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import prediction
from diffjax.prediction import Prediction, edm, evaluations, network_predict, with_evaluations
from diffjax.schedules import EDM, VE, Discrete, FlowMatching, VPLinear, perturb

SHAPE = (5, 3)


@pytest.fixture
def state(x64):
    x0_key, noise_key = jax.random.split(jax.random.key(0))
    x0, noise = jax.random.normal(x0_key, SHAPE), jax.random.normal(noise_key, SHAPE)
    t = jnp.linspace(0.1, 0.9, 5)
    return x0, noise, t


def test_definitions(state):
    x0, noise, t = state
    schedule, truth = VPLinear(), Prediction(x0, noise)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    np.testing.assert_allclose(
        prediction.to_v(schedule, t, truth), alpha * noise - sigma * x0, rtol=1e-12
    )
    np.testing.assert_allclose(prediction.to_score(schedule, t, truth), -noise / sigma, rtol=1e-12)
    flow = prediction.to_velocity(FlowMatching(), t, truth)
    np.testing.assert_allclose(flow, noise - x0, rtol=1e-12)


def test_velocity_is_the_time_derivative_of_the_path(state):
    x0, noise, t = state
    schedule, step = VPLinear(), 1e-6
    ahead, behind = (perturb(schedule, x0, t + s, noise) for s in (step, -step))
    velocity = prediction.to_velocity(schedule, t, Prediction(x0, noise))
    np.testing.assert_allclose(velocity, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 2.0, 80.0])
def test_edm_preconditioning_has_unit_input_and_target(sigma, x64):
    """c_in gives unit variance; the ideal output for N(0, d^2) data is 0, its target variance 1."""
    d, n = 0.5, 200_000
    keys = jax.random.split(jax.random.key(1))
    x0, noise = d * jax.random.normal(keys[0], (n, 1)), jax.random.normal(keys[1], (n, 1))
    schedule, parametrization, t = EDM(), edm(d), jnp.asarray(sigma)
    x = perturb(schedule, x0, t, noise)
    target = parametrization.encode(schedule, x, t, Prediction(x0, noise))
    assert abs(float(jnp.var(parametrization.scale(schedule, t) * x)) - 1) < 0.02
    assert abs(float(jnp.var(target)) - 1) < 0.02
    assert abs(float(jnp.mean(target * x)) / float(jnp.std(x))) < 0.02
    # With zero output, x0 is the exact posterior mean of N(0, d^2).
    posterior = parametrization.decode(schedule, x, t, jnp.zeros_like(x))
    np.testing.assert_allclose(posterior.x0, x * d**2 / (d**2 + sigma**2), rtol=1e-12)
    np.testing.assert_allclose(posterior.eps, (x - posterior.x0) / sigma, rtol=1e-6)


def test_edm_keeps_eps_precise_at_low_noise_in_float32():
    schedule, parametrization = EDM(), edm(0.5)
    x = 1 + jax.random.normal(jax.random.key(0), (100, 1))
    output = jax.random.normal(jax.random.key(1), (100, 1))
    single = parametrization.decode(schedule, x, 0.002, output).eps
    with jax.enable_x64(True):
        wide = (np.asarray(v, np.float64) for v in (x, output))
        x64, output64 = wide
        double = parametrization.decode(schedule, jnp.asarray(x64), 0.002, jnp.asarray(output64))
    np.testing.assert_allclose(single, double.eps, rtol=1e-5)


def test_labels():
    chain, t = Discrete.linear(1000), jnp.array([0.001, 0.5, 1.0])
    np.testing.assert_allclose(prediction.EPS.label(chain, t), [0, 499, 999], rtol=1e-4)
    np.testing.assert_allclose(prediction.EPS.label(VPLinear(), t), 999 * t)
    np.testing.assert_allclose(edm().label(EDM(), t), jnp.log(t) / 4, rtol=1e-5, atol=1e-6)


def test_ve_is_the_published_score_of_images_from_zero_to_one(state):
    """What such a network says of ``u = (x + 1) / 2``, divided by its noise level inside."""
    x0, noise, t = state
    schedule, half = VE(0.02, 100.0), VE(0.01, 50.0)
    x = perturb(schedule, x0, t, noise)

    def network(x, level):
        return jnp.tanh(x) * jnp.log(level)[:, None]

    published_score = network(2 * ((x + 1) / 2) - 1, half.sigma(t)) / half.sigma(t)[:, None]
    got = network_predict(network, schedule, prediction.VE)(x, t)
    np.testing.assert_allclose(got.eps, -half.sigma(t)[:, None] * published_score, rtol=1e-10)
    np.testing.assert_allclose(got.x0, x - schedule.sigma(t)[:, None] * got.eps, rtol=1e-10)


def test_learned_range_carries_its_place_between_the_variances():
    t, x = jnp.full((2,), 0.5), jnp.zeros((2, 4, 4, 3))
    output = jnp.concatenate([jnp.ones_like(x), jnp.full_like(x, -1.0)], axis=-1)
    got = prediction.learned_range(prediction.EPS).decode(VPLinear(), x, t, output)
    assert (got.eps == 1).all() and (got.variance == 0).all()


def test_any_pure_function_is_a_network():
    predict = network_predict(lambda x, label: 0.1 * x + label[:, None], VPLinear(), prediction.EPS)
    x = jnp.ones(SHAPE)
    np.testing.assert_allclose(predict(x, 0.5).eps, 0.1 + 999 * 0.5, rtol=1e-6)


def test_evaluations_are_one_unless_declared():
    def predict(x, t):
        return Prediction(x, x)

    assert evaluations(predict) == 1
    assert evaluations(with_evaluations(predict, 3)) == 3
    assert evaluations(predict) == 1


def test_unknown_parametrization():
    with pytest.raises(
        ValueError, match="unknown parametrization 'epsilon': choose one of eps, x0"
    ):
        prediction.parametrization("epsilon")
