"""The U-Net of ADM. Its outputs are compared with the official ones in tests/convert."""

import chex
import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import ADM, ADMClassifier, ADMSuperResolution
from diffjax.models.adm_blocks import attend

TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,), num_groups=4)
UNET = ADM(**TINY, head_channels=4, num_classes=3)


def inputs(module, *shape):
    x, time = jnp.zeros(shape), jnp.zeros(())
    return (x, time, jnp.zeros(shape[0], int)) if getattr(module, "num_classes", 0) else (x, time)


def shapes(module, *shape, **images):
    arguments = inputs(module, *shape)[: 2 if isinstance(module, ADMClassifier) else 3]
    return jax.eval_shape(module.init, jax.random.key(0), *arguments, **images)


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)))


def random_parameters(module, *shape, **images):
    """None of them at its initial zero."""
    draw = np.random.default_rng(0).standard_normal
    tree = shapes(module, *shape, **images)
    return jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), tree)


# Improved DDPM: linear runs on CIFAR-10, the class-conditional network and the size study on
# ImageNet 64. What is published as a checkpoint is counted in tests/convert.
IDDPM = dict(num_res_blocks=3, attn_resolutions=(16, 8), resblock_updown=False)
IMAGENET = IDDPM | dict(ch_mult=(1, 2, 3, 4), learned_variance=True)
DIGITS = dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), head_channels=32)


@pytest.mark.parametrize(
    ("module", "shape", "parameters"),
    [
        (ADM(**IDDPM, ch=128, ch_mult=(1, 2, 2, 2)), (32, 32, 3), 52_542_979),
        (
            ADM(**IMAGENET, ch=192, num_classes=1000, null_label=False),
            (64, 64, 3),
            273_049_350,
        ),
        (ADM(**IMAGENET, ch=64), (64, 64, 3), 30_303_494),
        (ADM(**DIGITS, num_classes=10, null_label=False), (8, 8, 1), 827_617),
        (
            ADM(**DIGITS, num_classes=10, null_label=False, learned_variance=True),
            (8, 8, 1),
            827_906,
        ),
        (ADMClassifier(**DIGITS, num_classes=10), (8, 8, 1), 378_186),
    ],
)
def test_published_parameter_counts(module, shape, parameters):
    assert count(module, 1, *shape) == parameters


def test_what_the_options_add():
    plain = count(UNET, 1, 4, 4, 3)
    assert plain - count(UNET.clone(null_label=False), 1, 4, 4, 3) == 4 * 8
    assert count(UNET.clone(learned_variance=True), 1, 4, 4, 3) - plain == 3 * (9 * 8 + 1)
    convolutions = UNET.clone(resblock_updown=False)
    neither = convolutions.clone(conv_resample=False)
    resampling = 9 * 8 * 8 + 8 + 9 * 16 * 16 + 16
    assert count(convolutions, 1, 4, 4, 3) - count(neither, 1, 4, 4, 3) == resampling


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_classifier_differentiates_exactly(pool, x64):
    """By the image, at several times: what classifier guidance is made of."""
    module = ADMClassifier(**TINY, head_channels=4, num_classes=3, pool=pool, dtype=jnp.float64)
    variables = random_parameters(module, 1, 4, 4, 1)
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    x, towards = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1), float)
    times = jnp.array([0.0, 300.0, 999.0])

    @jax.jit
    def picked(x):
        return jax.nn.log_softmax(module.apply(variables, x, times))[:, 1]

    _, tangent = jax.jit(lambda x: jax.jvp(picked, (x,), (towards,)))(x)
    step = 1e-5
    difference = (picked(x + step * towards) - picked(x - step * towards)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, rtol=1e-6)


def test_gradients_agree_with_finite_differences(x64):
    module = UNET.clone(dtype=jnp.float64)
    variables = random_parameters(module, 2, 4, 4, 1)
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    draw = np.random.default_rng(1).standard_normal
    towards = jax.tree.map(lambda a: draw(a.shape), variables)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1), float)

    @jax.jit
    def loss(variables):
        out = module.apply(variables, x, jnp.array([10.0, 500.0]), jnp.array([0, 2]))
        return jnp.sum(out.astype(float) ** 2)

    gradient = jax.jit(jax.grad(loss))(variables)
    slope = sum(
        jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, towards)), strict=True)
    )

    def moved(step):
        return loss(jax.tree.map(lambda a, d: a + step * d, variables, towards))

    np.testing.assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-5)


def test_rematerialisation_changes_memory_only():
    x = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))
    params = random_parameters(UNET, 2, 4, 4, 1)

    def gradient(module):
        def loss(params):
            return jnp.mean(jnp.square(module.apply(params, x, 500.0, jnp.array([0, 1]))))

        return jax.device_get(jax.jit(jax.grad(loss))(params))

    plain, remat = gradient(UNET), gradient(UNET.clone(remat=True))
    chex.assert_trees_all_close(plain, remat, rtol=1e-3, atol=1e-5)


def test_starts_at_exactly_zero_from_pytorch_defaults():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    out, variables = jax.jit(UNET.init_with_output)(jax.random.key(1), x, 500.0, jnp.arange(2))
    np.testing.assert_array_equal(out, 0)
    params = jax.device_get(variables["params"])
    zero = [
        params["conv_out"],
        params["down_0_block_0"]["conv_1"],
        params["middle_attention"]["out"],
    ]
    np.testing.assert_array_equal(
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(zero)]), 0
    )
    layer = params["middle_block_0"]["conv_0"]
    for leaf in (layer["kernel"], layer["bias"]):
        assert 0.8 / np.sqrt(9 * 16) < np.abs(leaf).max() <= 1 / np.sqrt(9 * 16)


def test_a_block_starts_as_the_identity():
    """Blocks keep what they get where neither width nor resolution changes."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    module = ADM(**{**TINY, "ch_mult": (1,)}, head_channels=4)
    _, state = module.init_with_output(
        jax.random.key(1), x, 500.0, capture_intermediates=True, mutable=True
    )
    seen = {
        name: stored["__call__"][0]
        for name, stored in state["intermediates"].items()
        if "_" in name and "__call__" in stored
    }
    np.testing.assert_array_equal(seen["middle_block_1"], seen["conv_in"])


def test_both_orders_are_the_same_attention():
    qkv = jax.random.normal(jax.random.key(0), (2, 5, 3 * 8))
    packed = einops.rearrange(qkv, "b n (h three d) -> b n (three h d)", three=3, h=2)
    np.testing.assert_allclose(attend(qkv, 2, False), attend(packed, 2, True), rtol=1e-6)
    assert np.abs(attend(qkv, 2, False) - attend(qkv, 2, True)).max() > 0.1


def test_small_image_is_enlarged_between_pixel_centres():
    """A ramp stays one, but for the half pixel at the edges."""
    module = ADMSuperResolution(**TINY, head_channels=4)
    x, low_res = (
        jnp.zeros((1, 8, 8, 1)),
        jnp.arange(4.0).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 1)),
    )
    plain = ADM(**TINY, head_channels=4, channels=1)
    variables = random_parameters(plain, 1, 8, 8, 2)
    row = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    enlarged = jnp.broadcast_to(row[:, None], (1, 8, 8, 1)).astype(jnp.float32)
    want = plain.apply(variables, jnp.concatenate([x, enlarged], -1), 500.0)
    out = module.apply(variables, x, 500.0, low_res=low_res)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="low_res must be one image a sample"):
        shapes(module, 2, 8, 8, 1, low_res=low_res)


def test_published_networks_need_labels():
    module, x = UNET.clone(null_label=False), jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="no null label: give the labels of all samples"):
        jax.eval_shape(module.init, jax.random.key(0), x, 0.0)


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        (dict(num_groups=16), (1, 4, 4, 1), "divisible by its 16 groups, got 8"),
        (dict(), (1, 6, 5, 1), "2 levels needs a height and width divisible by 2, got 6x5"),
        (dict(), (4, 4, 1), r"takes images .* got \(4, 4, 1\)"),
        (dict(head_channels=3), (1, 4, 4, 1), "heads that divide its 16 channels"),
    ],
)
def test_what_does_not_fit(attributes, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(UNET.clone(**attributes), *shape)


def test_unknown_pool():
    with pytest.raises(ValueError, match=r"pool must be .* got 'mean'"):
        shapes(ADMClassifier(**TINY, head_channels=4, pool="mean"), 1, 4, 4, 1)
