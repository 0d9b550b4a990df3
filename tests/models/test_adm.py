"""The U-Net of ADM. Its outputs are compared with the official ones in tests/convert."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import ADM, ADMClassifier, ADMSuperResolution
from diffjax.models.adm_blocks import attend

TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,), num_groups=4)
SMALL = ADM(ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_groups=4)
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
    step = 1e-3  # not smaller: the softmax of attention is in float32
    difference = (picked(x + step * towards) - picked(x - step * towards)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, atol=1e-3 * np.abs(tangent).max())


def test_gradients_agree_with_finite_differences(x64):
    """Those of a network that computes its blocks again in the backward pass."""
    module = UNET.clone(dtype=jnp.float64, remat=True)
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

    np.testing.assert_allclose(slope, (moved(1e-4) - moved(-1e-4)) / 2e-4, rtol=1e-4)


def test_starts_at_zero_with_blocks_that_do_nothing():
    """Blocks keep what they get where neither width nor resolution changes."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    @jax.jit
    def run(key):
        return SMALL.init_with_output(key, x, 500.0, capture_intermediates=True, mutable=True)

    out, state = jax.device_get(run(jax.random.key(1)))
    np.testing.assert_array_equal(out, 0)
    seen = state["intermediates"]
    middle, start = (seen[name]["__call__"][0] for name in ("middle_block_1", "conv_in"))
    np.testing.assert_array_equal(middle, start)
    layer = state["params"]["middle_block_0"]["conv_0"]
    for leaf in (layer["kernel"], layer["bias"]):
        assert 0.6 / np.sqrt(9 * 8) < np.abs(leaf).max() <= 1 / np.sqrt(9 * 8)


def test_both_orders_are_the_same_attention():
    qkv = jax.random.normal(jax.random.key(0), (2, 5, 3 * 8))
    packed = einops.rearrange(qkv, "b n (h three d) -> b n (three h d)", three=3, h=2)
    np.testing.assert_allclose(attend(qkv, 2, False), attend(packed, 2, True), rtol=1e-6)
    assert np.abs(attend(qkv, 2, False) - attend(qkv, 2, True)).max() > 0.1


def test_small_image_is_enlarged_between_pixel_centres():
    """A ramp stays one, but for the half pixel at the edges."""
    attributes = dict(ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_groups=4)
    module = ADMSuperResolution(**attributes)
    x, low_res = (
        jnp.zeros((1, 8, 8, 1)),
        jnp.arange(4.0).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 1)),
    )
    plain = ADM(**attributes, channels=1)
    variables = random_parameters(plain, 1, 8, 8, 2)
    row = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    enlarged = jnp.broadcast_to(row[:, None], (1, 8, 8, 1)).astype(jnp.float32)
    want = jax.jit(plain.apply)(variables, jnp.concatenate([x, enlarged], -1), 500.0)
    out = jax.jit(module.apply)(variables, x, 500.0, low_res=low_res)
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
