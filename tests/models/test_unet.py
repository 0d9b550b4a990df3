"""The DDPM U-Net. Its outputs are compared with the official ones in tests/convert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import UNet

TINY = dict(ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(2,))


def shapes(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(()))


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)))


@pytest.mark.parametrize(
    ("attributes", "shape", "parameters"),
    [
        (dict(), (32, 32, 3), 35_746_307),
        (dict(learned_variance=True), (32, 32, 3), 35_749_766),
        (dict(ch_mult=(1, 1, 2, 2, 4, 4)), (256, 256, 3), 113_673_219),
        (dict(ch_mult=(1, 2, 2, 2, 4)), (64, 64, 3), 78_700_803),
        (dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)), (8, 8, 1), 701_345),
        (dict(ch=32, ch_mult=(1, 2), attn_resolutions=(4,)), (8, 8, 1), 1_001_729),
    ],
)
def test_published_parameter_counts(attributes, shape, parameters):
    assert count(UNet(**attributes), 1, *shape) == parameters


def test_what_the_options_add():
    plain = count(UNet(**TINY), 1, 4, 4, 3)
    assert count(UNet(**TINY, num_classes=10), 1, 4, 4, 3) - plain == 11 * 128
    assert count(UNet(**TINY, learned_variance=True), 1, 4, 4, 3) - plain == 3 * (9 * 32 + 1)
    # A conditioning image beside the noisy one: six channels in, three out.
    assert count(UNet(**TINY, channels=3), 1, 4, 4, 6) - plain == 3 * 9 * 32


def test_attention_is_where_asked():
    module = UNet(ch=32, ch_mult=(1, 1, 1), num_res_blocks=2, attn_resolutions=(4,))
    names = {name for name in shapes(module, 1, 8, 8, 1)["params"] if "attention" in name}
    assert names == {
        "down_1_attention_0",
        "down_1_attention_1",
        "middle_attention",
        "up_1_attention_0",
        "up_1_attention_1",
        "up_1_attention_2",
    }


def test_starts_at_almost_zero():
    """So that the loss on the noise starts at its mean square, 1."""
    module = UNet(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_classes=2)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    out, variables = jax.jit(module.init_with_output)(jax.random.key(1), x, 500.0, jnp.arange(2))
    assert 0 < jnp.abs(out).max() < 1e-3
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(variables)):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0)
        elif path[-1].key == "kernel":
            # Uniform with the variance 2 / (fan_in + fan_out), or next to nothing.
            *window, into, out_of = leaf.shape
            deviation = np.sqrt(2 / (np.prod(window) * (into + out_of)))
            small = path[1].key == "conv_out" or path[-2].key in ("conv_1", "out")
            deviation *= 1e-5 if small else 1
            np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.1)
            assert np.abs(leaf).max() <= 1.001 * np.sqrt(3) * deviation


def test_groups_of_one_channel_hide_the_time():
    """A shift of each channel is what a normalisation of each channel takes away."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    time, steps = jnp.array([10.0, 500.0]), jnp.array([500.0, 10.0])
    draw = np.random.default_rng(0).standard_normal
    for num_groups, hidden in [(32, True), (8, False)]:
        module = UNet(32, (1,), 1, (), num_groups=num_groups)
        params = jax.tree.map(lambda a: 0.1 * draw(a.shape, np.float32), shapes(module, *x.shape))
        apply = jax.jit(module.apply)
        moved = jnp.abs(apply(params, x, time) - apply(params, x, steps)).max()
        assert (moved < 1e-5) == hidden


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        (dict(ch=48), (1, 4, 4, 1), "divisible by its 32 groups, got 48"),
        (dict(), (1, 6, 5, 1), "2 levels needs a height and width divisible by 2, got 6x5"),
        (dict(), (4, 4, 1), r"takes images .* got \(4, 4, 1\)"),
    ],
)
def test_what_does_not_fit(attributes, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(UNet(**{**TINY, **attributes}), *shape)
