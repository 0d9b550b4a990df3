"""Bits per dimension of images held out: in closed form, by batch, as the report says it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import analytic, bits, configuration, data, likelihood, metrics
from diffjax.experiment import build
from diffjax.random import per_sample
from diffjax.schedules import Discrete, VPLinear

QUICK = f"{pathlib.Path(__file__).parent}/data/digits.py:quick"
CHAIN = ("schedule.name=discrete_linear", "schedule.options={}", "schedule.options.steps=12")


def make(*overrides):
    small = ("model.width=8", "model.depth=1", *overrides)
    arguments = [f"--config.{override}" for override in small]
    return build(configuration.override(configuration.load(QUICK), arguments))


def untrained(experiment):
    example = {"image": np.zeros((1, *experiment.shape), np.uint8), "label": np.zeros(1, np.int32)}
    return jax.jit(experiment.system.init)(jax.random.key(0), example)


def digits(split="test"):
    return data.in_memory(data.create("digits", split=split), 60)


def test_grey_levels_are_what_the_bytes_stand_for():
    for levels in (2, 17, 256):
        whole = np.arange(levels)
        stored = np.round(255 * whole / (levels - 1)).astype(np.uint8)
        np.testing.assert_array_equal(bits.integers(stored, levels), whole)
        centres = np.asarray(bits.centres(stored, levels))
        np.testing.assert_allclose(centres, np.linspace(-1, 1, levels), atol=1e-6)
    assert set(np.unique(bits.integers(digits().images, 17))) == set(range(17))


def test_the_ode_on_a_gaussian():
    """Density of the marginal whose noise is that of the dequantisation, scaled to the data."""
    schedule, levels = VPLinear(), 17
    mixture = analytic.Mixture(np.zeros((1, 2, 2, 1)), 0.5)
    images = (255 / 16 * np.arange(16)).round().astype(np.uint8).reshape(4, 2, 2, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    measure = bits.LIKELIHOODS["ode"](schedule, "small")
    found = jax.jit(lambda images: measure(mixture.predict(schedule), images, keys, levels))(images)
    spread = jax.vmap(jax.random.split)(keys)[:, 0]
    x = likelihood.dequantise(spread, bits.centres(images, levels), 2 / 16)
    t = schedule.time(-jnp.log(2 / 16 / np.sqrt(12)))
    assert t > schedule.t_min
    alpha = schedule.alpha(t)
    nats = mixture.log_density(schedule, alpha * x, t) + 4 * jnp.log(alpha)
    expected = metrics.density_bits_per_dim(nats, (2, 2, 1), bin_width=2 / 16)
    np.testing.assert_allclose(found["bits"], expected, atol=2e-3)
    assert 20 < int(found["nfe"]) < 400


def test_independent_pixels_against_sampling(monkeypatch):
    random = np.random.default_rng(0)
    train, images = random.integers(17, size=(2, 50, 3, 1, 1))
    stored = [np.round(255 * part / 16).astype(np.uint8) for part in (train, images)]
    mean, variance = train.mean(0), train.var(0) + 1 / 12
    noisy = images + random.uniform(-0.5, 0.5, size=(4000, *images.shape))
    nats = -0.5 * (np.log(2 * np.pi * variance) + (noisy - mean) ** 2 / variance)
    found = bits.independent_pixels(*stored, 17)
    np.testing.assert_allclose(found, -nats.mean() / np.log(2), rtol=1e-3)


def test_the_bound_is_of_an_image_and_not_of_its_batch():
    """Every image's own bound, whichever way the images are divided over batches and devices."""
    reports = []
    for size in (3, 8):
        experiment = make(
            *CHAIN,
            "evaluate.likelihood=bound",
            "evaluate.likelihood_number=7",
            f"sample.batch_size={size}",
        )
        state = untrained(experiment)
        reports.append(bits.held_out_bits(experiment, state, digits("train"), digits()))
    np.testing.assert_allclose(reports[0]["bits_per_dim"], reports[1]["bits_per_dim"], rtol=1e-5)
    report = reports[0]
    assert (report["kind"], report["images"], report["levels"], report["nfe"]) == (
        "bound",
        7,
        17,
        12,
    )
    np.testing.assert_allclose(report["uniform"], np.log2(17))

    # By hand: the same images with the labels, keys and clipping that they should have.
    chosen = np.sort(np.random.default_rng(0).permutation(60)[:7])
    held_out, keys = digits(), per_sample(jax.random.key(0), jnp.arange(7))
    found = experiment.system.measure(
        state, held_out.images[chosen], held_out.labels[chosen], keys, 17
    )
    np.testing.assert_allclose(np.mean(found["bits"]), report["bits_per_dim"], rtol=1e-5)
    error = np.std(found["bits"], ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(report["standard_error"], error, rtol=1e-4)
    # An untrained network predicts a constant: it knows no more than that noise is normal.
    assert report["bits_per_dim"] > report["independent_gaussian_pixels"]
    assert "given the label" in report["convention"]
    said = bits.line(report)
    assert f"{report['bits_per_dim']:.3f} +- " in said and "uniform over 17 levels 4.087" in said


def test_nothing_is_measured_unless_asked():
    assert make().system.measure is None


def test_the_variance_is_that_of_sampling():
    """Which the chain is drawn with, where it is drawn by its own steps."""
    from diffjax import components

    asked = []

    def spy(schedule, variance):
        asked.append(variance)

    config, chain = make(*CHAIN, "evaluate.likelihood=bound").config, Discrete.linear(12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bits.LIKELIHOODS, "bound", spy)
        components.measure(config, chain)
        config.sample.solver, config.sample.options = "ancestral", {"variance": "large"}
        components.measure(config, chain)
        config.prediction.learned_variance = True
        components.measure(config, chain)
    assert asked == ["small", "large", "learned"]
