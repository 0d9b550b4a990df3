"""Deformations: each against its formula, and that what is told is what was done."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import augmentation, losses, prediction, schedules, solvers
from diffjax.models import ADM, MLP, DiT, UNet
from diffjax.systems import Request, diffusion, sampler

NOTHING = dict(x_flip=False, y_flip=False, zoom=0.0, rotation=0.0, stretch=0.0, shift=0.0)


def random_images(*shape):
    return jax.random.uniform(jax.random.key(1), shape, minval=-1)


def deform(images, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return jax.jit(functools.partial(augmentation.edm, **options))(images, keys)


def rotated(degrees):
    angle = np.deg2rad(degrees)
    return jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# The map.


@pytest.mark.parametrize("border", ["reflect", "black"])
def test_whole_pixels_are_moved_exactly(border):
    image = random_images(5, 6, 2)
    padded = (
        jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        if border == "reflect"
        else jnp.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=-1)
    )
    for rows, columns in ((0, 0), (1, -2), (-2, 0)):
        offset = jnp.array([rows, columns], float)
        moved = augmentation.warp(image, jnp.eye(2), offset, border)
        expected = padded[2 + rows : 7 + rows, 2 + columns : 8 + columns]
        np.testing.assert_array_equal(moved, expected)


def test_quarter_turn():
    image = random_images(6, 6, 3)
    turned = augmentation.warp(image, rotated(90), jnp.zeros(2), "black")
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=2e-6)


def test_unknown_border():
    with pytest.raises(ValueError, match="border must be 'reflect' or 'black', got 'white'"):
        deform(random_images(1, 2, 2, 1), border="white")


# What is done, and what is told.


def quadratic(places):
    """A picture that cubic convolution, being of third order, interpolates exactly."""
    row, column = places[..., 0] / 40, places[..., 1] / 40
    return 0.1 + 0.5 * row - 0.3 * column + 0.7 * row * column - 0.6 * row**2 + 0.2 * column**2


def test_told_is_what_was_done():
    """The picture in each place is that of the place it comes from, by the formula."""
    size, zoom, stretch, shift, number = 24, 0.2, 0.15, 0.05, 32
    centred = np.stack(np.indices((size, size)), -1) - (size - 1) / 2
    images = jnp.tile(quadratic(centred)[..., None], (number, 1, 1, 1))
    deformed, told = deform(
        images, probability=0.7, zoom=zoom, rotation=180.0, stretch=stretch, shift=shift
    )
    assert np.any(np.asarray(told) != 0, axis=0).all()
    seen = 0
    for image, done in zip(np.asarray(deformed), np.asarray(told, np.float64), strict=True):
        flip = np.diag(1 - 2 * done[[1, 0]])
        turn = np.array([[1 + done[3], -done[4]], [done[4], 1 + done[3]]])
        m = np.copysign(np.hypot(*done[5:7]), done[5])
        axis = done[5:7] / m if m else np.array([1, 0])
        axes = np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
        stretched = axes @ np.diag([2 ** (stretch * m), 2 ** (-stretch * m)]) @ axes.T
        matrix = flip @ turn @ stretched * 2 ** (-zoom * done[2])
        places = (centred - size * shift * done[[8, 7]]) @ matrix.T
        inside = np.abs(places).max(-1) < (size - 1) / 2 - 2
        seen += inside.mean() / number
        np.testing.assert_allclose(image[inside, 0], quadratic(places[inside]), atol=1e-4)
    assert seen > 0.4


def test_nothing_done_is_nothing_told():
    images = random_images(6, 5, 4, 2)
    for options in (dict(probability=0.0, x_flip=False), dict(probability=1.0, **NOTHING)):
        deformed, told = deform(images, **options)
        np.testing.assert_array_equal(deformed, images)
        np.testing.assert_array_equal(told[:, [0, 1, 3, 4]], 0)
    assert told.shape == (6, 9)


def test_mirrored_every_other_time():
    images = random_images(200, 1, 3, 1)
    deformed, told = deform(images, probability=0.0)
    mirrored = told[:, 0] == 1
    np.testing.assert_array_equal(deformed[mirrored], images[mirrored, :, ::-1])
    np.testing.assert_array_equal(deformed[~mirrored], images[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_probabilities_and_sizes():
    number, probability = 8000, 0.3
    told = np.asarray(deform(jnp.zeros((number, 1, 1, 1)), probability=probability)[1])
    tolerance = 4 * np.sqrt(probability * (1 - probability) / number)
    done = (told != 0).mean(0)
    np.testing.assert_allclose(done[[2, 3, 4, 5, 7, 8]], probability, atol=tolerance)
    np.testing.assert_allclose(done[[1, 6]], probability / 2, atol=tolerance)
    for column in (2, 7, 8):
        values = told[told[:, column] != 0, column]
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.08)
    # Independent of one another, but for both shifts, which are done together.
    assert abs(np.corrcoef(told[:, 2] != 0, told[:, 4] != 0)[0, 1]) < 4 / np.sqrt(number)
    np.testing.assert_array_equal(told[:, 7] != 0, told[:, 8] != 0)


def test_each_image_by_its_own_key():
    images, keys = random_images(4, 6, 6, 1), jax.random.split(jax.random.key(0), 4)
    together = jax.jit(functools.partial(augmentation.edm, probability=0.8))(images, keys)
    alone = augmentation.edm(images[2:3], keys[2:3], probability=0.8)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[2:3], together), alone, atol=1e-5)


# The network and the system.

NETWORKS = {
    "adm": ADM(ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_groups=4),
    "dit": DiT(width=16, depth=1, num_heads=2, num_classes=3),
    "mlp": MLP(width=16, depth=1, num_classes=3),
    "unet": UNet(ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_groups=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_hear_it(name):
    """Zeros are as good as nothing, anything else is not; without it nothing is allocated."""
    network, x = NETWORKS[name], random_images(2, 4, 4, 1)
    time, told = jnp.full(2, 0.3), jax.random.normal(jax.random.key(2), (2, 9))
    init = functools.partial(network.init, jax.random.key(0), x, time)
    plain, shapes = jax.eval_shape(init), jax.eval_shape(lambda: init(augmentation=told))
    added = shapes["params"].pop("augmentation")
    chex.assert_trees_all_equal_shapes(plain, shapes)
    assert added["dense"].keys() == {"kernel"}
    draw = np.random.default_rng(0).standard_normal
    variables = jax.tree.map(
        lambda leaf: 0.3 * draw(leaf.shape, np.float32),
        jax.eval_shape(lambda: init(augmentation=told)),
    )
    apply = jax.jit(network.apply)
    nothing, zeros, deformed = (
        apply(variables, x, time, **options)
        for options in ({}, {"augmentation": 0 * told}, {"augmentation": told})
    )
    np.testing.assert_allclose(nothing, zeros, rtol=1e-5, atol=1e-5)
    assert np.abs(deformed - nothing).max() > 1e-3


AUGMENT = functools.partial(augmentation.edm, probability=0.9)


def system(augment, microbatches=1):
    schedule = schedules.EDM()
    return diffusion(
        MLP(width=16, depth=1, num_classes=3, time_embedding="fourier"),
        schedule,
        prediction.edm(),
        objective=functools.partial(losses.weighted_x0, weighting=losses.edm_weight()),
        times=losses.log_normal_times,
        optimizer=optax.sgd(0.1),
        draw=sampler(schedule, solvers.recipe("ddim", schedule, 2), (4, 4, 1), num_classes=3),
        num_classes=3,
        augment=augment,
        ema_rates=(0.9,),
        sample_ema="0.9",
        microbatches=microbatches,
    )


def batch(rows=16):
    images = np.random.default_rng(0).integers(256, size=(rows, 4, 4, 1), dtype=np.uint8)
    return {"image": images, "label": np.arange(rows, dtype=np.int32) % 3}


@functools.cache
def trained():
    """The system that is told, after the updates that it takes to reach what is told.

    The network starts silent: the first update moves the last layer, the second the blocks, and
    the third what they are told.
    """
    told = system(AUGMENT)
    states = [jax.jit(told.init)(jax.random.key(0), batch())]
    update = jax.jit(told.update)
    for step in range(3):
        states.append(update(states[-1], batch(), jax.random.key(step))[0])
    return told, states


def test_system_trains_what_is_told_and_draws_without():
    told, states = trained()
    first, last = (states[i].params["augmentation"]["dense"]["kernel"] for i in (0, -1))
    assert first.shape == (9, 16) and (first != last).any()
    request = Request(jnp.arange(2), jnp.array([0, 1]))
    drawn = [
        each.sample(states[-1], jax.random.key(0), request).images for each in (told, system(None))
    ]
    np.testing.assert_array_equal(*drawn)


def test_deformations_do_not_depend_on_how_the_batch_is_split():
    _, states = trained()
    in_turn = jax.jit(system(AUGMENT, microbatches=4).update)
    new, _ = in_turn(states[-2], batch(), jax.random.key(2))
    chex.assert_trees_all_close(new.params, states[-1].params, rtol=1e-5, atol=1e-6)
