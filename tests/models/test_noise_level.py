"""Predictors of noise levels: the published size, what they see, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import NoiseLevelConv, NoiseLevelMLP


def parameters(module, shape):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "shape, strides", [((32, 32, 3), (2, 2, 2, 2)), ((256, 256, 3), (4, 4, 4, 2))]
)
def test_the_published_network_has_the_published_size(shape, strides):
    assert parameters(NoiseLevelConv(strides=strides), shape) == 1_413_416


def test_layers_of_the_published_network_in_numpy():
    """Padded 3x3 convolutions, ReLU, means over 2x2 pixels, one dense layer."""
    module = NoiseLevelConv(levels=7, channels=(4, 6), strides=(2, 2))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    logits, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
    h = np.asarray(x, np.float64)
    for index in range(2):
        layer = variables["params"][f"conv_{index}"]
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = h.shape[1]
        h = sum(
            padded[:, i : i + size, j : j + size] @ np.asarray(layer["kernel"])[i, j]
            for i in range(3)
            for j in range(3)
        )
        h = np.maximum(h + layer["bias"], 0)
        h = h.reshape(2, size // 2, 2, size // 2, 2, -1).mean(axis=(2, 4))
    out = variables["params"]["out"]
    expected = h.reshape(2, -1) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [NoiseLevelConv(20, (4, 8), (2, 2)), NoiseLevelMLP(20, 16, 1)])
def test_any_batch_in_float32(module):
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    logits, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
    assert logits.shape == (3, 20) and logits.dtype == jnp.float32
    np.testing.assert_allclose(module.apply(variables, x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    half = module.clone(dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1)


def test_dense_layers_see_the_length_beside_the_direction():
    module = NoiseLevelMLP(20, 16, 1)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    variables = module.init(jax.random.key(1), x)
    first, louder = module.apply(variables, x), module.apply(variables, 50 * x)
    assert jnp.abs(first - louder).max() > 0.1
    assert jnp.isfinite(module.apply(variables, jnp.zeros((1, 4)))).all()


def test_mistakes():
    x = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(ValueError, match="channels and strides go together"):
        jax.eval_shape(NoiseLevelConv(strides=(2,)).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="1x1 is left before average 4 of 4"):
        jax.eval_shape(NoiseLevelConv().init, jax.random.key(0), x)
