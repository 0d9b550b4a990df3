"""Training of a noise-level predictor, and how its calibration is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import analytic, mcmc
from diffjax.models import NoiseLevelMLP
from diffjax.systems import calibration, noise_level

LEVELS = mcmc.noise_levels(0.5, 20.0, 60)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), np.uint8)


@pytest.fixture(scope="module")
def trained():
    """A system and its state after 300 updates."""
    system = noise_level(
        NoiseLevelMLP(60, 64, 2),
        LEVELS,
        optimizer=optax.adam(5e-3),
        ema_rates=(0.9,),
        sample_ema="0.9",
    )
    batch = {"image": jnp.asarray(np.tile(IMAGES, (16, 1, 1, 1))), "label": jnp.zeros(256, int)}

    @jax.jit
    def run(key):
        def step(state, key):
            return system.update(state, batch, key)

        state = system.init(key, batch)
        return jax.lax.scan(step, state, jax.random.split(key, 300))

    return system, *run(jax.random.key(0))


def test_learns_to_tell_levels_apart(trained):
    system, state, metrics = trained
    assert system.sample is None and int(state.step) == 300
    loss = np.asarray(metrics["loss"])
    assert loss[0] == pytest.approx(np.log(60), rel=0.1)
    assert loss[-20:].mean() < loss[0] - 1.0
    report = system.evaluate(state, {"image": IMAGES, "label": None}, jax.random.key(1))
    assert report["law"] == pytest.approx(32**-0.5)
    # Where noise drowns the data, nearly as narrow as the law.
    assert np.mean(report["std"][:4]) < 1.7 * report["law"]
    assert np.abs(report["bias"][:4]).max() < 0.15


def test_batches_may_be_split(trained):
    """Rows draw from keys of their own: two microbatches give the loss and gradient of one."""
    _, state, _ = trained
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.zeros(16, int)}
    results = []
    for parts in (1, 2):
        system = noise_level(
            NoiseLevelMLP(60, 64, 2),
            LEVELS,
            optimizer=optax.adam(5e-3),
            ema_rates=(0.9,),
            microbatches=parts,
        )
        results.append(jax.jit(system.update)(state, batch, jax.random.key(1))[1])
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-4)


def test_calibration_of_the_exact_posterior():
    """In 64 dimensions the mode errs by 1/sqrt(128), as the sheet of the paper's law says."""
    levels = mcmc.noise_levels(0.1, 20.0, 400)
    logits = mcmc.mixture_logits(analytic.point_mass(np.zeros((8, 8, 1))), levels)
    report = calibration(logits, levels, jnp.zeros((600, 8, 8, 1)), jax.random.key(0), places=5)
    assert report["law"] == pytest.approx(128**-0.5)
    assert report["sigma"][0] == pytest.approx(20.0)
    # At the ends the mode cannot err to both sides.
    np.testing.assert_allclose(report["std"][1:-1], report["law"], rtol=0.12)
    assert np.abs(report["bias"][1:-1]).max() < 0.02
