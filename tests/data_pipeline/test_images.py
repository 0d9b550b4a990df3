"""Scaling, cropping, grids and files."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import data

BYTES = np.arange(256, dtype=np.uint8)


def test_to_float_is_exact_at_the_ends_and_near_elsewhere():
    x = data.to_float(BYTES)
    assert x.dtype == jnp.float32
    assert (x[0], x[255]) == (-1.0, 1.0)
    np.testing.assert_allclose(x, BYTES.astype(np.float64) / 127.5 - 1, atol=1e-7)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_round_trip(transform):
    there, back = transform(data.to_float), transform(data.to_uint8)
    np.testing.assert_array_equal(back(there(BYTES)), BYTES)


def test_round_trip_x64(x64):
    x = data.to_float(BYTES)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(data.to_uint8(x.astype(jnp.float64)), BYTES)


def test_shrink_is_a_box_filter():
    image = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    small = data.shrink(data.to_float(image)[None], 2)
    box = Image.fromarray(image).resize((3, 2), Image.Resampling.BOX)
    assert small.shape == (1, 2, 3, 3)
    np.testing.assert_array_equal(data.to_uint8(small[0]), np.asarray(box))
    np.testing.assert_array_equal(data.shrink(small, 2), small)


@pytest.mark.parametrize("side", [0, 3, 16])
def test_what_cannot_be_shrunk(side):
    with pytest.raises(ValueError, match=f"images 8x12 cannot be shrunk to a height of {side}"):
        data.shrink(np.zeros((1, 8, 12, 3)), side)


def test_to_uint8_rounds_to_the_nearest_and_clips():
    levels = (BYTES[:-1] + np.array([[-0.4], [0.0], [0.4]])) / 127.5 - 1
    assert data.to_uint8(levels).dtype == jnp.uint8
    np.testing.assert_array_equal(data.to_uint8(levels), np.stack([BYTES[:-1]] * 3))
    outside = jnp.array([-jnp.inf, -3.0, -1.01, 1.01, 3.0, jnp.inf])
    np.testing.assert_array_equal(data.to_uint8(outside), [0, 0, 0, 255, 255, 255])
    # 0 lies half-way between 127 and 128.
    assert data.to_uint8(0.0) == 128


def test_to_float_has_no_gradient_surprise():
    gradient = jax.grad(lambda x: data.to_float(x))(3.0)
    chex.assert_trees_all_close(gradient, 1 / 127.5)


def test_centre_crop_halves_by_boxes():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    cropped = np.asarray(data.centre_crop(Image.fromarray(pixels), 16))
    expected = pixels.astype(float)
    for _ in range(2):  # PIL rounds to bytes after the columns, and again after the rows
        expected = np.floor((expected[:, ::2] + expected[:, 1::2]) / 2 + 0.5)
        expected = np.floor((expected[::2] + expected[1::2]) / 2 + 0.5)
    np.testing.assert_array_equal(cropped, expected)


def test_centre_crop_finishes_with_bicubic():
    pixels = np.random.default_rng(1).integers(0, 256, (30, 30)).astype(np.uint8)
    image = Image.fromarray(pixels)
    expected = image.resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(data.centre_crop(image, 20), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 13), (11, 8)])
def test_centre_crop_keeps_the_middle_and_the_pixels(height, width):
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3)).astype(np.uint8)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = pixels[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(data.centre_crop(Image.fromarray(pixels), 8), expected)


@pytest.mark.parametrize("height", range(5, 40, 3))
def test_centre_crop_has_the_size(height):
    assert data.centre_crop(Image.new("L", (17, height)), 8).size == (8, 8)


def test_image_grid():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    sheet = data.image_grid(images, columns=3)
    assert sheet.shape == (4, 9, 1)
    np.testing.assert_array_equal(sheet[::2, ::3, 0], [[1, 2, 3], [4, 5, 0]])
    np.testing.assert_array_equal(sheet[1::2, 2::3, 0], [[1, 2, 3], [4, 5, 0]])
    assert data.image_grid(images).shape == (4, 9, 1)
    assert data.image_grid(images[:4]).shape == (4, 6, 1)
    assert data.image_grid(images, columns=8).shape == (2, 24, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_save_png(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels)).astype(np.uint8)
    path = tmp_path / "new" / "image.png"
    data.save_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image.squeeze())


def test_floats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="convert floats with to_uint8"):
        data.image_grid(np.zeros((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="n >= 1"):
        data.image_grid(np.zeros((0, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        data.image_grid(np.zeros((2, 4, 4, 1), np.uint8), columns=0)
    with pytest.raises(ValueError, match="convert floats with to_uint8"):
        data.save_png(tmp_path / "x.png", np.zeros((4, 4, 1)))
    with pytest.raises(ValueError, match=r"got uint8 \(4, 4\)"):
        data.save_png(tmp_path / "x.png", np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("number", "classes", "columns"),
    [
        (100, 10, 10),
        (64, 2, 8),
        (13, 3, 3),
        (12, 12, 12),
        (64, 0, None),
        (9, 10, None),
        (400, 21, None),
    ],
)
def test_classes_stand_in_columns(number, classes, columns):
    assert data.class_columns(number, classes) == columns


def test_contact_sheet_frames_and_enlarges():
    images = np.full((3, 12, 12, 1), 255, np.uint8)
    sheet = data.contact_sheet(images, columns=2)
    assert sheet.shape == (2 * 14 * 3, 2 * 14 * 3, 1)
    assert (sheet[:3] == 96).all() and (sheet[3:39, 3:39] == 255).all()
    assert (sheet[42:, 42:] == 0).all()
    assert data.contact_sheet(np.zeros((1, 40, 50, 3), np.uint8)).shape == (42, 52, 3)
