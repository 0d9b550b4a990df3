"""The KL autoencoder. Its outputs are compared with the official ones in tests/convert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from diffjax.models import AutoencoderKL
from diffjax.models.vae import Posterior

TINY = AutoencoderKL(widths=(8, 16), num_res_blocks=1, latent_channels=2, num_groups=4)
X = np.random.default_rng(0).standard_normal((2, 8, 4, 3)).astype(np.float32)


@functools.cache
def parameters():
    draw = np.random.default_rng(1).standard_normal
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros(X.shape))
    return jax.tree.map(lambda a: 0.2 * draw(a.shape, np.float32), shapes)


def test_counts_and_sizes():
    """Stable Diffusion's: 83,653,863 parameters, one latent pixel for 8 by 8 of the image."""
    module = AutoencoderKL()
    x = jnp.zeros((1, 64, 32, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 83_653_863
    latents = jax.eval_shape(functools.partial(module.apply, method="to_latent"), variables, x)
    assert latents.shape == (1, 8, 4, 4)
    decode = functools.partial(module.apply, method="from_latent")
    assert jax.eval_shape(decode, variables, latents).shape == x.shape


def test_latents_are_scaled_and_both_halves_learn():
    @jax.jit
    def everything(variables, x, key):
        def loss(variables, dtype=jnp.float32):
            module = TINY.clone(dtype=dtype)
            posterior = module.apply(variables, x, method="encode")
            z = posterior.sample(key)
            out = module.apply(variables, z, method="decode")
            return jnp.mean((out - x) ** 2) + 1e-3 * posterior.kl().mean(), (posterior, z, out)

        half = loss(variables, jnp.bfloat16)[1][2]
        whole = TINY.apply(variables, x, key)
        mean = TINY.apply(variables, x, method="to_latent")
        return jax.value_and_grad(loss, has_aux=True)(variables), half, whole, mean

    found = jax.device_get(everything(parameters(), X, jax.random.key(0)))
    ((_, (posterior, z, out)), gradient), half, whole, mean = found
    np.testing.assert_allclose(mean, 0.18215 * posterior.mean, rtol=1e-5)
    np.testing.assert_allclose(whole, out, rtol=1e-4, atol=1e-5)
    assert z.shape == (2, 4, 2, 2) and out.shape == X.shape
    assert 0 < np.linalg.norm(half - out) < 0.05 * np.linalg.norm(out)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        # A constant is what the softmax over positions does not see.
        unseen = [key.key for key in path[-2:]] == ["k", "bias"]
        assert np.any(np.abs(leaf) > 1e-6) or unseen, jax.tree_util.keystr(path)


def test_posterior_is_a_gaussian():
    mean = jnp.array([0.5, -1.0]).reshape(1, 1, 1, 2)
    log_variance = jnp.array([-1.0, 0.5]).reshape(1, 1, 1, 2)
    posterior = Posterior(mean.repeat(20_000, 0), log_variance.repeat(20_000, 0))
    draws = posterior.sample(jax.random.key(0))
    np.testing.assert_allclose(draws.mean(0), mean[0], atol=0.03)
    np.testing.assert_allclose(draws.var(0), jnp.exp(log_variance[0]), rtol=0.05)
    # The divergence is the mean of the difference of log densities.
    scale = jnp.exp(log_variance / 2)
    difference = norm.logpdf(draws, mean, scale) - norm.logpdf(draws)
    np.testing.assert_allclose(posterior.kl()[0], difference.sum((1, 2, 3)).mean(), rtol=0.05)
    # With a key an image, an image's draw depends on no other.
    keys = jax.random.split(jax.random.key(1), 3)
    few = Posterior(posterior.mean[:3], posterior.log_variance[:3])
    last = Posterior(posterior.mean[2:3], posterior.log_variance[2:3])
    np.testing.assert_array_equal(few.sample(keys)[2:], last.sample(keys[2:]))


@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (1, 4, 4, 1), (4, 4, 3)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"2 levels takes images .* 3\) of a size divisible by 2"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros(shape))
