"""How images are brought to the Inception network; the network itself is tested in convert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax.metrics import inception
from diffjax.metrics.inception import Features, InceptionProbe, preprocess, resize_matrix

SIZES = [1, 8, 32, 64, 256, 299, 512]


@pytest.mark.parametrize("size", SIZES)
def test_tensorflow_samples_between_corners(size):
    """Coordinate ``i * size / 299``, its upper neighbour held at the last pixel."""
    matrix = resize_matrix(size, 299, "tensorflow")
    line = np.random.default_rng(0).standard_normal(size)
    want = np.interp(np.arange(299) * size / 299, np.arange(size), line)
    np.testing.assert_allclose(matrix @ line, want, atol=1e-4)
    if size == 299:
        np.testing.assert_array_equal(matrix, np.eye(299))


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_samples_between_centres(size):
    """As JAX does without antialiasing."""
    line = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    want = jax.image.resize(line, (299,), "bilinear", antialias=False)
    np.testing.assert_allclose(resize_matrix(size, 299, "pytorch") @ line, want, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_pillow(size):
    image = np.random.default_rng(0).uniform(0, 255, (size, 5)).astype(np.float32)
    want = Image.fromarray(image, mode="F").resize((5, 299), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(resize_matrix(size, 299, "clean") @ image, want, atol=1e-3)


@pytest.mark.parametrize("convention", inception.CONVENTIONS)
def test_range_and_grey_images(convention):
    """Black is -1; white is 1, or the last of 256 values below it."""
    flat = np.array([0, 128, 255], np.uint8).reshape(3, 1, 1, 1).repeat(8, 1).repeat(9, 2)
    grey = jax.jit(preprocess, static_argnums=1)(flat, convention)
    assert grey.shape == (3, 299, 299, 3)
    white = 1.0 if convention == "pytorch" else 127 / 128
    middle = 2 * 128 / 255 - 1 if convention == "pytorch" else 0.0
    want = np.array([-1, middle, white])
    np.testing.assert_allclose(
        grey, np.broadcast_to(want[:, None, None, None], grey.shape), atol=1e-5
    )


def test_conventions_of_one_image():
    """An edge: bilinear stays within its two sides, and bicubic is clipped to the range."""
    edge = np.zeros((1, 4, 4, 3), np.uint8)
    edge[:, :, 2:] = 255
    found = {c: np.asarray(preprocess(jnp.asarray(edge), c)) for c in inception.CONVENTIONS}
    for x in found.values():
        assert x.min() >= -1 and x.max() <= 1
        np.testing.assert_allclose(x[0, 0], x[0, -1], atol=1e-6)
        assert (np.diff(x[0, 0, :, 0]) >= -0.2).all()
    names = list(found)
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(found[names[first]] - found[names[second]]).max() > 0.05


def test_features_come_in_batches_and_in_order(monkeypatch):
    """Any number of images; short batches are filled up, and the filling is dropped."""
    seen = []

    def brightness(variables, images, convention):
        seen.append((images.shape, convention))
        mean = np.asarray(images, np.float32).mean((1, 2))
        return Features(mean + variables["shift"], mean, mean)

    monkeypatch.setattr(inception, "_features", brightness)
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1).repeat(2, 1).repeat(2, 2)
    mesh = jax.sharding.Mesh(jax.devices()[:2], "data")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for probe, batch in [
        (InceptionProbe({"shift": 10}, "clean", batch_size=3), 3),
        (InceptionProbe({"shift": 10}, "clean", batch_size=3, sharding=sharding), 4),
        (InceptionProbe({"shift": 10}, "clean"), 7),
    ]:
        seen.clear()
        found = probe(images)
        assert {*seen} == {((batch, 2, 2, 1), "clean")}
        np.testing.assert_array_equal(found.pool[:, 0], np.arange(10, 17))
        np.testing.assert_array_equal(found.logits[:, 0], np.arange(7))


def test_mistakes():
    with pytest.raises(ValueError, match="unknown convention 'fid': choose one of tensorflow"):
        InceptionProbe({}, "fid")
    for images in np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8):
        with pytest.raises(ValueError, match="uint8 images"):
            preprocess(jnp.asarray(images), "clean")
