"""The small classifier: shapes, its convolutions, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import classifier
from diffjax.models.classifier import SmallClassifier


@pytest.fixture(scope="module")
def case():
    """A tiny model, its variables, images, and what it says about them."""
    model = SmallClassifier(3, channels=(4, 4), features=8)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    output, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    return model, variables, x, output


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 9, 3), (28, 28, 1)])
def test_shapes(key, shape):
    model = SmallClassifier(10, features=32)
    output, _ = jax.eval_shape(model.init_with_output, key, jnp.zeros((3, *shape)))
    assert output.logits.shape == (3, 10)
    assert output.features.shape == (3, 32)
    assert output.logits.dtype == output.features.dtype == jnp.float32


def test_logits_are_linear_in_the_features(case):
    _, variables, _, output = case
    last = variables["params"]["Dense_1"]
    expected = np.asarray(output.features) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


def test_each_image_is_judged_alone(case):
    model, variables, x, output = case
    alone = jax.jit(jax.vmap(lambda image: model.apply(variables, image[None]).logits[0]))(x)
    np.testing.assert_allclose(output.logits, alone, atol=1e-5)


def test_every_parameter_gets_a_gradient(case):
    model, variables, x, _ = case

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jax.nn.log_softmax(model.apply(variables, x).logits)[:, 0].sum()

    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient(variables)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 2), (7, 5, 3)])
def test_patches_are_a_convolution(stride, shape):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((3, 3, shape[-1], 4)).astype(np.float32)
    x = generator.standard_normal((2, *shape)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    dense = {"Dense_0": {"kernel": kernel.reshape(-1, 4), "bias": bias}}
    convolution = nn.Conv(4, (3, 3), strides=stride, padding=1)
    np.testing.assert_allclose(
        classifier._PatchConv(4, stride=stride).apply({"params": dense}, x),
        convolution.apply({"params": {"kernel": kernel, "bias": bias}}, x),
        atol=1e-5,
    )
