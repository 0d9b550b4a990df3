"""The residual MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.models import MLP


@pytest.mark.parametrize("shape", [(2,), (8, 8, 1), (3, 2, 3)])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_shapes(shape, learned_variance):
    module = MLP(width=8, depth=1, learned_variance=learned_variance)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(1), jnp.zeros((4, *shape)), 3.0)
    assert out.shape == (4, *shape[:-1], shape[-1] * (1 + learned_variance))


def test_starts_at_zero():
    x = jax.random.normal(jax.random.key(0), (4, 2))
    out, variables = jax.jit(MLP(width=8, depth=2).init_with_output)(jax.random.key(1), x, 3.0)
    np.testing.assert_array_equal(out, 0)
    # The blocks too start as the identity, and the conditioning has a say from the first step.
    for i in range(2):
        block = variables["params"][f"block_{i}"]
        np.testing.assert_array_equal(block["dense_1"]["kernel"], 0)
        assert np.std(block["modulation"]["kernel"]) > 0.1


def test_unknown_time_embedding():
    with pytest.raises(ValueError, match="'sinusoidal' or 'fourier', got 'learned'"):
        MLP(time_embedding="learned").init(jax.random.key(0), jnp.zeros((1, 2)), 0.0)


@pytest.mark.parametrize(("time_embedding", "unit"), [("sinusoidal", 999.0), ("fourier", 1.0)])
def test_learns_the_noise_in_gaussian_data(time_embedding, unit):
    """For data N(0, s^2) the best answer is known: sigma x / (alpha^2 s^2 + sigma^2).

    With the cosine schedule alpha = cos, sigma = sin the loss without a network is 1, and the best
    possible is the mean of alpha^2 s^2 / (alpha^2 s^2 + sigma^2) over time.
    """
    scale = jnp.array([1.0, 0.3])
    module = MLP(width=64, depth=2, time_embedding=time_embedding)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    def draw(key, number):
        data, noise, time = jax.random.split(key, 3)
        t = jax.random.uniform(time, (number,), minval=0.01, maxval=0.99)
        alpha, sigma = jnp.cos(t * jnp.pi / 2)[:, None], jnp.sin(t * jnp.pi / 2)[:, None]
        eps = jax.random.normal(noise, (number, 2))
        x = alpha * scale * jax.random.normal(data, (number, 2)) + sigma * eps
        return x, t * unit, eps, sigma * x / (alpha**2 * scale**2 + sigma**2)

    def error(variables, key, number, best):
        x, t, eps, answer = draw(key, number)
        return jnp.mean(jnp.square(module.apply(variables, x, t) - (answer if best else eps)))

    def step(carry, key):
        variables, state = carry
        gradient = jax.grad(error)(variables, key, 128, best=False)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(variables, updates), state), None

    @jax.jit
    def train(variables, key):
        carry = variables, optimizer.init(variables)
        (variables, _), _ = jax.lax.scan(step, carry, jax.random.split(key, 400))
        return variables

    start = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2)), 0.0)
    trained = train(start, jax.random.key(1))
    # The mean square of the best answer, 0.6, is all there is to explain.
    assert error(start, jax.random.key(2), 4096, best=True) > 0.5
    assert error(trained, jax.random.key(2), 4096, best=True) < 0.02
