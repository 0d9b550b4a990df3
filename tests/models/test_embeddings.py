"""Embeddings against their formulas, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.embeddings import (
    LabelEmbedding,
    as_batch_of_times,
    fourier_embedding,
    grid_positions,
    sinusoidal_embedding,
)

TIMES = np.array([0.0, 1.0, 37.25, 999.0])


@pytest.mark.parametrize("convention", ["ddpm", "adm"])
def test_sinusoids(convention):
    half = 16
    want = np.zeros((len(TIMES), 2 * half))
    for j in range(half):
        frequency = 10000 ** (-j / (half - 1 if convention == "ddpm" else half))
        sine = j if convention == "ddpm" else half + j
        cosine = half + j if convention == "ddpm" else j
        want[:, sine] = np.sin(frequency * TIMES)
        want[:, cosine] = np.cos(frequency * TIMES)
    got = sinusoidal_embedding(jnp.asarray(TIMES, jnp.float32), 2 * half, convention)
    # An angle of 999 is known to half a float32 unit, 3e-5.
    np.testing.assert_allclose(got, want, atol=6e-5)


def test_an_odd_width_ends_in_zero():
    times = jnp.asarray(TIMES, jnp.float32)
    odd = sinusoidal_embedding(times, 9, "adm")
    np.testing.assert_array_equal(odd[:, :8], sinusoidal_embedding(times, 8, "adm"))
    np.testing.assert_array_equal(odd[:, 8], 0)


def test_fourier_features_tell_close_times_apart_and_never_wrap():
    times = np.linspace(-1.75, 1.75, 400)
    features = np.asarray(fourier_embedding(jnp.asarray(times), 32))
    np.testing.assert_allclose(np.square(features).sum(-1), 16, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    gaps = np.abs(times[:, None] - times[None])
    # Neighbours are close, distinct times are never confused.
    assert distances[gaps < 0.01].max() < 1.5
    assert distances[gaps > 0.05].min() > 1.5
    np.testing.assert_allclose(
        fourier_embedding(jnp.array([0.25]), 4),
        [[np.sin(np.pi / 32), np.sin(4 * np.pi), np.cos(np.pi / 32), np.cos(4 * np.pi)]],
        atol=1e-5,
    )


def test_grid_positions():
    """Rows of the table of a 3x4 grid: the first half encodes the column, the second the row."""
    table = grid_positions(3, 4, 16)
    assert table.shape == (12, 16)
    quarters = np.repeat([0, 1, 0, 1], 4)
    np.testing.assert_array_equal(table[0], quarters)
    np.testing.assert_array_equal(table[1, 8:], quarters[8:])
    np.testing.assert_array_equal(table[4, :8], quarters[:8])
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(table[7, :4], np.sin(3 * frequencies), rtol=1e-6)
    np.testing.assert_allclose(table[7, 12:], np.cos(frequencies), rtol=1e-6)


def test_times_broadcast():
    assert as_batch_of_times(3, 5).shape == (1,)
    assert as_batch_of_times(jnp.arange(5), 5).shape == (5,)
    assert as_batch_of_times(jnp.arange(5), 5).dtype == jnp.float32
    for shape in [(1,), (4,), (5, 1)]:
        with pytest.raises(ValueError, match="a batch of 5 needs a scalar or"):
            as_batch_of_times(jnp.zeros(shape), 5)


def test_labels():
    module = LabelEmbedding(num_classes=3, features=4)
    variables = module.init(jax.random.key(0), None, 1)
    table = variables["params"]["table"]["embedding"]
    assert table.shape == (4, 4)
    np.testing.assert_array_equal(
        module.apply(variables, jnp.array([2, 0]), 2), table[jnp.array([2, 0])]
    )
    np.testing.assert_array_equal(module.apply(variables, None, 2), table[3:])
    for labels in [jnp.zeros(2), jnp.zeros(3, int), jnp.zeros((2, 1), int)]:
        with pytest.raises(ValueError, match="labels must be 2 integers"):
            module.apply(variables, labels, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: sinusoidal_embedding(t, 2, "adm"), "width of at least 4, got 2"),
        (lambda t: sinusoidal_embedding(t, 8, "glide"), "'ddpm' or 'adm', got 'glide'"),
        (lambda t: fourier_embedding(t, 7), "even width, got 7"),
        (lambda t: grid_positions(2, 2, 6), "divisible by 4, got 6"),
    ],
)
def test_impossible_embeddings(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros(1))
