"""NCSN++ and DDPM++. Their outputs are compared with the official ones in tests/convert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import NCSNpp
from diffjax.models.ncsnpp_blocks import FourierFeatures, PyramidStep
from diffjax.models.resampling import downsample, filtered, upsample

TINY = NCSNpp(ch=16, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(2,))
FLAT = TINY.clone(ch_mult=(1,), attn_resolutions=())  # of one level: quick to compile
FIR = (1, 3, 3, 1)
KEY = jax.eval_shape(lambda: jax.random.key(0))
LOPSIDED = (4, 3, 2, 1)


def shapes(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(()))


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)))


def random_parameters(module, *shape):
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), shapes(module, *shape))


def resampled_by_definition(x, kernel, up, down, padding):
    """Zeros between the pixels, a convolution with the filter, every ``down``-th pixel."""
    for axis in (1, 2):
        wide = np.repeat(x, up, axis=axis)
        zeros = np.arange(wide.shape[axis]) % up != 0
        wide[(slice(None),) * axis + (zeros,)] = 0
        wide = np.pad(wide, [padding if a == axis else (0, 0) for a in range(4)])
        taps = up * np.array(kernel) / sum(kernel)
        filtered = np.apply_along_axis(np.convolve, axis, wide, taps, "valid")
        x = filtered[(slice(None),) * axis + (slice(None, None, down),)]
    return x


@pytest.mark.parametrize("kernel", [(1, 1), FIR, LOPSIDED, (1, 2, 1), (1, 5, 10, 10, 5, 1)])
def test_resampling_by_definition(kernel):
    """The paddings are those of StyleGAN2's ``upsample_2d`` and ``downsample_2d``."""
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3))
    excess = len(kernel) - 2
    up = resampled_by_definition(x, kernel, 2, 1, ((excess + 1) // 2 + 1, excess // 2))
    down = resampled_by_definition(x, kernel, 1, 2, ((excess + 1) // 2, excess // 2))
    both = jax.jit(lambda x: (upsample(x, kernel), downsample(x, kernel)))(x)
    np.testing.assert_allclose(both[0], up, atol=2e-6)
    np.testing.assert_allclose(both[1], down, atol=2e-6)


def test_a_box_repeats_and_averages():
    x = np.arange(2 * 4 * 4 * 1.0, dtype=np.float32).reshape(2, 4, 4, 1)
    np.testing.assert_array_equal(upsample(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
    means = x.reshape(2, 2, 2, 2, 2, 1).mean((2, 4))
    np.testing.assert_array_equal(downsample(x, (1, 1)), means)


def test_pyramid_steps_are_a_filter_and_a_convolution():
    """Away from the border it does not matter which is first, nor whether they are one."""
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 2))
    for resample, inner in ("up", slice(6, -6)), ("down", slice(3, -3)):
        step = PyramidStep(3, resample, FIR, jnp.float32)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 3))
        bias = jnp.arange(3.0)
        params = {"conv": {"kernel": kernel, "bias": bias}}
        if resample == "up":
            params = {"conv": {"kernel": kernel}, "bias": bias}
        out = jax.jit(step.apply)({"params": params}, x)

        def conv(image, stride, kernel=kernel):
            dimensions = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                image, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
            )

        if resample == "up":
            want = conv(upsample(x, FIR), 1)
        else:
            # Its windows start at even pixels of the filtered image: they are centred at odd ones.
            want = conv(filtered(x, FIR, (2, 1)), 1)[:, 1::2, 1::2]
        assert out.shape == want.shape == (1, *([32, 8][resample == "down"],) * 2, 3)
        np.testing.assert_allclose(
            out[:, inner, inner], (want + bias)[:, inner, inner], rtol=1e-4, atol=1e-4
        )


NCSN = dict(fir_kernel=FIR, progressive_input="residual")


@pytest.mark.parametrize(
    ("attributes", "parameters"),
    [
        # EDM's networks: unconditional, of 10 classes, and for 64 pixels.
        (dict(ch_mult=(2, 2, 2)), 55_733_891),
        (dict(ch_mult=(2, 2, 2), num_classes=10), 55_735_299),
        (dict(ch_mult=(2, 2, 2), time_embedding="fourier", **NCSN, num_classes=10), 56_400_771),
        (dict(ch_mult=(1, 2, 2, 2), time_embedding="fourier", **NCSN), 62_761_091 + 128),
    ],
)
def test_parameter_counts_of_edm(attributes, parameters):
    """Which are told of nine properties of an augmented image."""
    init, x = NCSNpp(**attributes).init, jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(functools.partial(init, augmentation=jnp.zeros((1, 9))), KEY, x, 0.0)
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == parameters


def test_attention_is_where_asked():
    module = TINY.clone(ch_mult=(1, 1, 1), num_res_blocks=2, attn_resolutions=(4,))
    names = {name for name in shapes(module, 1, 8, 8, 1)["params"] if "attention" in name}
    assert names == {
        "down_1_attention_0",
        "down_1_attention_1",
        "middle_attention",
        "up_1_attention",
    }


@pytest.mark.parametrize(
    ("progressive", "progressive_input", "kernel", "combine"),
    [
        ("output_skip", "input_skip", (), "cat"),
        ("output_skip", "none", FIR, "sum"),
        ("residual", "residual", FIR, "sum"),
        ("residual", "residual", (), "sum"),
    ],
)
def test_pyramids_fit_together(progressive, progressive_input, kernel, combine):
    module = TINY.clone(
        progressive=progressive,
        progressive_input=progressive_input,
        progressive_combine=combine,
        fir_kernel=kernel,
    )
    x = jnp.zeros((1, 4, 4, 1))
    out, made = jax.eval_shape(module.init_with_output, jax.random.key(0), x, 0.0)
    assert out.shape == x.shape
    pyramids = {name.split("_")[0] for name in made["params"] if "pyramid" in name}
    assert ("down" in pyramids) == (progressive_input != "none")
    assert "up" in pyramids


def test_images_from_zero_to_one_are_centred_by_the_network():
    params = random_parameters(FLAT, 1, 4, 4, 1)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
    outer, inner = jax.jit(
        lambda x: (
            FLAT.apply(params, 2 * x - 1, 5.0),
            FLAT.clone(centered=False).apply(params, x, 5.0),
        )
    )(x)
    np.testing.assert_allclose(outer, inner, rtol=1e-4, atol=1e-4)


def test_a_score_is_divided_by_its_noise_level():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))

    def ratio(module, times):
        params = random_parameters(module, 1, 4, 4, 1)

        @jax.jit
        def both(time):
            modules = module, module.clone(scale_by_sigma=True)
            return [each.apply(params, x, time) for each in modules]

        plain, scaled = both(jnp.asarray(times))
        return np.mean(plain / scaled, axis=(1, 2, 3))

    fourier = FLAT.clone(time_embedding="log_fourier")
    np.testing.assert_allclose(ratio(fourier, [0.5, 20.0]), [0.5, 20.0], rtol=1e-5)
    # The first of the table is the largest.
    table = FLAT.clone(sigmas=(0.01, 90.0, 1000))
    levels = np.exp(np.linspace(np.log(90), np.log(0.01), 1000))
    np.testing.assert_allclose(ratio(table, [0.0, 500.0]), levels[[0, 500]], rtol=1e-4)


def test_augmentation_is_told_and_zero_is_none():
    x, zeros = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.zeros((2, 9))
    made = jax.eval_shape(functools.partial(FLAT.init, augmentation=zeros), KEY, x, 0.0)
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), made)
    apply = jax.jit(lambda augmentation: FLAT.apply(params, x, 5.0, augmentation=augmentation))
    both, plain = apply(zeros.at[1].set(1)), apply(None)
    np.testing.assert_allclose(both[0], plain[0], rtol=1e-4, atol=1e-4)
    assert np.abs(both[1] - plain[1]).max() > 1e-2


def test_starts_at_almost_zero():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    out, variables = jax.jit(FLAT.init_with_output)(jax.random.key(1), x, 0.5)
    assert 0 < jnp.abs(out).max() < 1e-3
    block = variables["params"]["middle_block_0"]
    np.testing.assert_allclose(np.std(block["conv_0"]["kernel"]), (9 * 16) ** -0.5, rtol=0.1)
    assert np.std(block["conv_1"]["kernel"]) < 1e-5


def test_frequencies_are_drawn_once_and_do_not_learn():
    module = FourierFeatures(500, scale=16.0)
    time = jnp.array([0.25, -1.0])
    variables = module.init(jax.random.key(0), time)
    frequencies = np.float64(variables["params"]["frequencies"])
    np.testing.assert_allclose(np.std(frequencies), 16, rtol=0.1)
    angles = 2 * np.pi * np.outer(time, frequencies)
    want = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(module.apply(variables, time), want, atol=1e-4)
    gradient = jax.grad(lambda v, t: module.apply(v, t).sum(), (0, 1))(variables, time)
    assert not np.any(gradient[0]["params"]["frequencies"])
    assert np.all(gradient[1])


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        (dict(ch=18), (1, 4, 4, 1), "ch divisible by 4, got 18"),
        (dict(), (1, 6, 5, 1), "2 levels needs a height and width divisible by 2, got 6x5"),
        (dict(), (4, 4, 1), r"takes images .* got \(4, 4, 1\)"),
        (dict(fir_kernel=(1,)), (1, 4, 4, 1), "at least two taps"),
        (dict(progressive="skip"), (1, 4, 4, 1), "no progressive 'skip'; .* output_skip"),
        (dict(time_embedding="log"), (1, 4, 4, 1), "no time_embedding 'log'"),
        (dict(time_embedding="fourier", scale_by_sigma=True), (1, 4, 4, 1), "'log_fourier' or"),
        (dict(learned_variance=True, scale_by_sigma=True), (1, 4, 4, 1), "no learned variance"),
    ],
)
def test_what_does_not_fit(attributes, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(TINY.clone(**attributes), *shape)
