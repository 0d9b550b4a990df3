"""What every network promises. A new network joins by one row."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import ADM, MLP, DiT, NCSNpp, UNet, UViT

BATCH = 2


class Row(NamedTuple):
    """A network at a tiny size, and the shape of one input."""

    module: nn.Module
    shape: tuple[int, ...]


NETWORKS = {
    "adm": Row(
        ADM(
            ch=16,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(2,),
            head_channels=8,
            dropout=0.5,
            num_groups=4,
            num_classes=3,
            learned_variance=True,
        ),
        (4, 4, 1),
    ),
    "improved ddpm": Row(
        ADM(
            ch=16,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            num_heads=2,
            scale_shift_norm=False,
            resblock_updown=False,
            num_groups=4,
            num_classes=3,
        ),
        (4, 4, 1),
    ),
    "unet": Row(
        UNet(
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            dropout=0.5,
            num_groups=8,
            num_classes=3,
            learned_variance=True,
        ),
        (4, 4, 1),
    ),
    "dit": Row(
        DiT(width=16, depth=2, num_heads=2, num_classes=3, learned_variance=True), (4, 4, 1)
    ),
    "dit by cross-attention": Row(
        DiT(width=16, depth=2, num_heads=2, num_classes=3, conditioning="cross_attention"),
        (4, 4, 1),
    ),
    "dit in context": Row(
        DiT(width=16, depth=2, num_heads=2, num_classes=3, conditioning="in_context"), (4, 4, 1)
    ),
    "ncsnpp": Row(
        NCSNpp(
            ch=16,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            dropout=0.5,
            fir_kernel=(1, 3, 3, 1),
            progressive="output_skip",
            progressive_input="residual",
            num_classes=3,
            learned_variance=True,
        ),
        (4, 4, 1),
    ),
    "uvit": Row(
        UViT(width=16, depth=2, num_heads=2, num_classes=3, learned_variance=True), (4, 4, 1)
    ),
    "mlp": Row(MLP(width=16, depth=1, num_classes=3, dropout=0.5), (4, 4, 3)),
    "mlp of vectors": Row(
        MLP(16, depth=1, num_classes=3, time_embedding="fourier", learned_variance=True), (2,)
    ),
}


class Case(NamedTuple):
    """A row with parameters, none of them zero, and a batch of inputs.

    Attributes:
        module: The network.
        variables: Its parameters.
        inputs: Arrays x, time, labels.
        apply: ``module.apply``, compiled.
        train: Compiled ``(variables, x, key) -> (loss, gradients)``, dropout on.
    """

    module: nn.Module
    variables: dict
    inputs: tuple[jax.Array, jax.Array, jax.Array]
    apply: Callable
    train: Callable


def random_parameters(shapes):
    """Parameters of the usual sizes. Compiling the initialisers would take longer than a test."""
    draw = np.random.default_rng(0).standard_normal

    def parameter(path, leaf):
        if path[-1].key == "scale":
            return 1 + 0.1 * draw(leaf.shape, np.float32)
        fan_in = 1 if path[-1].key == "embedding" else np.prod(leaf.shape[-4:-1])
        return draw(leaf.shape, np.float32) / np.sqrt(fan_in)

    return jax.tree.map_with_path(parameter, shapes)


@functools.cache
def prepared(name):
    module, shape = NETWORKS[name]
    unit = 1.0 if getattr(module, "time_embedding", "") == "fourier" else 999.0
    x = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    inputs = x, unit * jnp.array([0.1, 0.7]), jnp.array([0, 2])

    def loss(variables, x, key):
        out = module.apply(variables, x, *inputs[1:], train=True, rngs={"dropout": key})
        return jnp.mean(jnp.square(out))

    return Case(
        module=module,
        variables=random_parameters(jax.eval_shape(module.init, jax.random.key(1), *inputs)),
        inputs=inputs,
        apply=jax.jit(module.apply),
        train=jax.jit(jax.value_and_grad(loss, (0, 1))),
    )


@pytest.fixture(params=NETWORKS)
def case(request):
    return prepared(request.param)


def test_compiled_once_and_equal_to_eager(case):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(*arguments):
        return case.module.apply(*arguments)

    x, time, labels = case.inputs
    channels = x.shape[-1] * (2 if case.module.learned_variance else 1)
    for other in (x, time, labels), (-x, time / 2, (labels + 1) % 4):
        out = apply(case.variables, *other)
        chex.assert_shape(out, (*x.shape[:-1], channels))
        chex.assert_type(out, jnp.float32)
        np.testing.assert_allclose(
            out, case.module.apply(case.variables, *other), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("changed", ["x", "time", "labels"])
def test_samples_do_not_see_each_other(case, changed):
    """Another image, time or label of the last sample changes its own output and no other."""
    position = ["x", "time", "labels"].index(changed)
    other = list(case.inputs)
    other[position] = other[position].at[-1].add(1 if changed == "labels" else -0.5)
    before, after = (
        np.asarray(case.apply(case.variables, *inputs)) for inputs in (case.inputs, other)
    )
    np.testing.assert_allclose(before[:-1], after[:-1], rtol=1e-5, atol=1e-5)
    assert np.abs(before - after)[-1].max() > 1e-4


def test_scalar_time_and_no_labels(case):
    """A scalar time is everyone's time, and no labels are everyone's null label."""
    x, time, _ = case.inputs
    null = jnp.full(BATCH, case.module.num_classes)
    want = case.apply(case.variables, x, time[:1].repeat(BATCH), null)
    np.testing.assert_allclose(case.apply(case.variables, x, time[0]), want, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close(case):
    half = case.module.clone(dtype=jnp.bfloat16)
    out = np.asarray(jax.jit(half.apply)(case.variables, *case.inputs))
    want = np.asarray(case.apply(case.variables, *case.inputs))
    chex.assert_type(out, jnp.float32)
    assert 0 < np.linalg.norm(out - want) < 0.04 * np.linalg.norm(want)
    shapes = jax.eval_shape(half.init, jax.random.key(0), *case.inputs)
    chex.assert_type(jax.tree.leaves(shapes), jnp.float32)


def test_gradients_are_finite_and_reach_everything(case):
    _, gradients = case.train(case.variables, case.inputs[0], jax.random.key(0))
    gradients = jax.device_get(gradients)
    chex.assert_tree_all_finite(gradients)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.any(leaf != 0), jax.tree_util.keystr(path)


def test_gradients_are_finite_differences(case):
    """The slope along a direction in all parameters and the input, dropout's mask held."""
    x, key = case.inputs[0], jax.random.key(0)
    _, gradients = jax.device_get(case.train(case.variables, x, key))
    draw = np.random.default_rng(1).standard_normal
    step = jax.tree.map(
        lambda g: g / np.linalg.norm(g) + draw(g.shape, np.float32) / g.size**0.5, gradients
    )
    slope = sum(
        np.sum(g * s) for g, s in zip(*map(jax.tree.leaves, (gradients, step)), strict=True)
    )
    size = 1e-3 / max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(step))

    def loss(size):
        moved = jax.tree.map(lambda a, s: a + size * s, (case.variables, x), step)
        return float(case.train(*moved, key)[0])

    np.testing.assert_allclose((loss(size) - loss(-size)) / (2 * size), slope, rtol=0.01)


def test_random_only_when_training(case):
    first, again, second = (
        case.train(case.variables, case.inputs[0], jax.random.key(seed))[0] for seed in (0, 0, 1)
    )
    assert first == again
    assert (abs(first - second) > 1e-4) == (getattr(case.module, "dropout", 0) > 0)
    # Without training no key is needed, as every other test shows.
    if first != second:
        with pytest.raises(flax.errors.InvalidRngError):
            jax.eval_shape(lambda: case.module.apply(case.variables, *case.inputs, train=True))


def test_unconditional(case):
    module = case.module.clone(num_classes=0)
    x, time, labels = case.inputs
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, time)
    assert out.shape == case.apply(case.variables, *case.inputs).shape
    assert "label" not in variables["params"]
    with pytest.raises(ValueError, match="labels were given to an unconditional network"):
        jax.eval_shape(module.apply, variables, x, time, labels)


@pytest.mark.parametrize("shape", [(1,), (BATCH, 1), (BATCH + 1,)])
def test_times_of_another_shape_are_refused(case, shape):
    x, _, labels = case.inputs
    with pytest.raises(ValueError, match=r"time has shape .* needs a scalar or \(2,\)"):
        jax.eval_shape(case.module.apply, case.variables, x, jnp.zeros(shape), labels)
