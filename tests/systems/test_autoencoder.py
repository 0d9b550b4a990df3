"""The autoencoder system: its loss, its training and its report, and latents as another's data."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import systems
from diffjax.data import to_float
from diffjax.models.vae import Posterior

SHAPE = (2, 2, 1)


class Network(nn.Module):
    """One linear layer a half: pictures of two grey values need no more."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(2), nn.Dense(4)

    def __call__(self, x):
        return self.decode(self.encode(x).mean)

    def encode(self, x):
        moments = self.encoder(x.reshape(-1, 1, 1, 4))
        return Posterior(*jnp.split(moments, 2, axis=-1))

    def decode(self, z):
        return self.decoder(z).reshape(-1, *SHAPE)


def make(**options):
    return systems.autoencoder(
        Network(), optimizer=optax.adam(3e-2), ema_rates=(), sample_ema="", **options
    )


def batch(size=64):
    """Pictures of one grey value each: a single number tells all."""
    greys = np.linspace(0, 255, size).astype(np.uint8)
    images = np.broadcast_to(greys[:, None, None, None], (size, *SHAPE))
    return {"image": images, "label": np.zeros(size, np.int32)}


def test_loss_is_error_and_divergence_a_pixel():
    random = np.random.default_rng(0)
    x, decoded = random.normal(size=(2, 3, *SHAPE))
    mean, log_variance = random.normal(size=(2, 3, 1, 1, 2))
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3))
    for error, power in (("l1", 1), ("l2", 2)):
        got = systems.reconstruction(
            x, decoded, Posterior(jnp.asarray(mean), jnp.asarray(log_variance)), error=error, kl=0.1
        )
        pixels = (np.abs(x - decoded) ** power).sum((1, 2, 3))
        np.testing.assert_allclose(got, (pixels + 0.1 * kl) / 4, rtol=1e-5)
    with pytest.raises(ValueError, match="error must be l1 or l2"):
        systems.reconstruction(x, decoded, Posterior(mean, log_variance), error="l3")


def test_learns_to_reconstruct_and_reports_it():
    system = make()
    state = system.init(jax.random.key(0), batch())
    update, before = jax.jit(system.update), system.evaluate(state, batch(), None)
    for step in range(300):
        state, metrics = update(state, batch(), jax.random.fold_in(jax.random.key(1), step))
    report = system.evaluate(state, batch(100), None)
    assert report["psnr"] > 25 > before["psnr"] and metrics["squared_error"] < 0.01
    assert system.sample is None

    # Each figure from its definition, the spread from draws.
    network, variables = Network(), {"params": state.params}
    x = to_float(batch(100)["image"])
    posterior = network.apply(variables, x, method="encode")
    decoded = np.clip(network.apply(variables, posterior.mean, method="decode"), -1, 1)
    squared = ((np.asarray(x) - decoded) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(report["psnr"], (20 * np.log10(2 / squared**0.5)).mean(), rtol=1e-3)
    np.testing.assert_allclose(report["kl"], posterior.kl().mean(), rtol=1e-4)
    keys = jax.random.split(jax.random.key(2), 500)
    draws = jax.vmap(posterior.sample)(keys)
    np.testing.assert_allclose(report["latent_std"], draws.std(), rtol=0.02)
    np.testing.assert_allclose(report["scale"] * report["latent_std"], 1)


def test_microbatches_make_the_same_update():
    whole, parts = make(), make(microbatches=4)
    state = whole.init(jax.random.key(0), batch(32))
    one, _ = whole.update(state, batch(32), jax.random.key(1))
    four, _ = parts.update(state, batch(32), jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, four.params)


def test_latents_are_scaled_draws_a_key_each():
    random = np.random.default_rng(0)
    moments = random.normal(size=(3, 4, 4, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (1000, 3))
    draws = jax.vmap(lambda k: systems.latents(0.5)(moments, k))(keys)
    mean, log_variance = np.split(moments, 2, -1)
    assert draws.shape == (1000, 3, 4, 4, 2)
    np.testing.assert_allclose(draws.mean(0), 0.5 * mean, atol=0.15)
    np.testing.assert_allclose((draws.var(0) / np.exp(log_variance)).mean(), 0.25, rtol=0.02)
    # An image's draw depends on its own key alone.
    alone = systems.latents(0.5)(moments[1:2], keys[0, 1:2])
    np.testing.assert_array_equal(alone[0], draws[0, 1])
