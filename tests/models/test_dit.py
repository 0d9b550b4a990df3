"""The diffusion transformer. Its outputs are compared with the official ones in tests/convert."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.models import DIT_SIZES, DiT, published_dit
from diffjax.models import dit as dit_module
from diffjax.models.dit import patchify, unpatchify

TINY = DiT(patch_size=2, width=16, depth=2, num_heads=2, num_classes=3)


def shapes(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(()))


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)))


def random_parameters():
    """Parameters of TINY, none of them at its initial zero."""
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), shapes(TINY, 1, 4, 4, 1))


PUBLISHED = {
    "S/8": 33_142_016,
    "S/4": 32_920_448,
    "S/2": 32_865_056,
    "B/8": 130_869_248,
    "B/4": 130_426_496,
    "B/2": 130_315_808,
    "L/8": 458_578_432,
    "L/4": 457_988_224,
    "L/2": 457_840_672,
    "XL/8": 675_664_640,
    "XL/4": 675_000_704,
    "XL/2": 674_834_720,
}


@pytest.mark.parametrize(("size", "parameters"), PUBLISHED.items())
def test_published_parameter_counts(size, parameters):
    assert count(published_dit(size), 1, 32, 32, 4) == parameters


@pytest.mark.parametrize(
    ("conditioning", "parameters"),
    [("adaln", 600_452_384), ("cross_attention", 597_991_712), ("in_context", 449_162_528)],
)
def test_parameter_counts_of_the_ablation(conditioning, parameters):
    assert count(published_dit("XL/2", conditioning=conditioning), 1, 32, 32, 4) == parameters


@pytest.mark.parametrize(("width", "depth", "count_"), [(32, 2, 49_992), (64, 4, 329_224)])
def test_parameter_counts_of_small_networks(width, depth, count_):
    module = DiT(width=width, depth=depth, num_heads=4, num_classes=10, learned_variance=True)
    assert count(module, 1, 8, 8, 1) == count_
    assert count(module.clone(num_classes=0), 1, 8, 8, 1) == count_ - 11 * width


def test_by_name():
    assert published_dit("B/4") == DiT(
        patch_size=4, num_classes=1000, learned_variance=True, **DIT_SIZES["B"]
    )
    assert published_dit("S/2", depth=3, num_classes=10).depth == 3
    for name in ["M/2", "S2", "S/", "s/2"]:
        with pytest.raises(ValueError, match="write a size of S, B, L, XL"):
            published_dit(name)


def test_patches_and_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    # Second patch of the first row: pixels (0, 2), (0, 3), (1, 2), (1, 3).
    np.testing.assert_array_equal(tokens[0, 1], x[0, :2, 2:4].ravel())
    np.testing.assert_array_equal(unpatchify(tokens, 2, height=4), x)


def test_starts_as_exactly_zero_and_learns_from_the_end():
    """Zero gates: the layers start to learn in three steps, the last layer first."""
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    noise = jax.random.normal(jax.random.key(1), x.shape)
    labels = jnp.array([0, 1, 2, 3, 3, 0])
    params = jax.jit(TINY.init)(jax.random.key(2), x, 0.0, labels)["params"]
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            out = TINY.apply({"params": params}, x, 100 * jnp.arange(6.0), labels)
            return jnp.mean(jnp.square(out - noise)), out

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state_ = optimizer.update(gradient, state)
        return out, gradient, optax.apply_updates(params, updates), state_

    def learning(gradient):
        return {
            "/".join(key.key for key in path)
            for path, leaf in jax.tree.leaves_with_path(gradient)
            if np.any(leaf != 0)
        }

    every = {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)}
    last = {"out/kernel", "out/bias"}
    gates = {"blocks/modulation/kernel", "blocks/modulation/bias"}
    second = (
        last
        | gates
        | {f"{m}/{p}" for m in ("modulation", "patch_embed") for p in ("kernel", "bias")}
    )

    out, gradient, params, state = step(params, state)
    np.testing.assert_array_equal(out, 0)
    assert learning(jax.device_get(gradient)) == last

    _, gradient, params, state = step(params, state)
    gradient = jax.device_get(gradient)
    assert learning(gradient) == second
    for leaf in jax.tree.leaves(gradient["blocks"]["modulation"]):
        parts = np.stack(np.split(leaf, 6, axis=-1))  # shift, scale, gate, shift, scale, gate
        learns = np.any(parts != 0, axis=tuple(range(2, parts.ndim)))  # per part and layer
        np.testing.assert_array_equal(learns, np.array([[0, 0, 1, 0, 0, 1]]).repeat(2, 0).T)

    _, gradient, _, _ = step(params, state)
    assert learning(jax.device_get(gradient)) == every


def test_without_positions_patches_may_be_permuted(monkeypatch):
    table = dit_module.grid_positions
    x = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))
    order = np.array([2, 0, 3, 1])
    shuffled = unpatchify(patchify(x, 2)[:, order], 2, height=4)

    both = jnp.concatenate([x, shuffled])

    def outputs():
        apply = jax.jit(lambda both: patchify(TINY.apply(random_parameters(), both, 500.0), 2))
        first, second = np.split(apply(both), 2)
        return first[:, order], second

    first, second = outputs()
    assert np.abs(first - second).max() > 0.1
    monkeypatch.setattr(dit_module, "grid_positions", lambda *a: np.zeros_like(table(*a)))
    np.testing.assert_allclose(*outputs(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["adaln", "cross_attention", "in_context"])
def test_forms_of_the_ablation(conditioning):
    """Each depends on every input, starts at zero, and is not another."""
    module = TINY.clone(conditioning=conditioning)
    x = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))
    out, _ = jax.jit(module.init_with_output)(jax.random.key(0), x, 500.0, jnp.array([0, 1]))
    np.testing.assert_array_equal(out, 0)
    draw = np.random.default_rng(0).standard_normal
    variables = jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), shapes(module, 1, 4, 4, 1))
    apply = jax.jit(module.apply)
    plain = apply(variables, x, 500.0, jnp.array([0, 1]))
    for other in (
        apply(variables, x, 100.0, jnp.array([0, 1])),
        apply(variables, x, 500.0, jnp.array([1, 2])),
        apply(variables, x[::-1], 500.0, jnp.array([0, 1])),
    ):
        assert np.abs(plain - other).max() > 1e-2


def test_rematerialisation_changes_memory_only():
    x = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))

    def gradient(module):
        def loss(params):
            return jnp.mean(jnp.square(module.apply(params, x, 500.0)))

        return jax.device_get(jax.jit(jax.grad(loss))(random_parameters()))

    plain, remat = gradient(TINY), gradient(TINY.clone(remat=True))
    chex.assert_trees_all_close(plain, remat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        (dict(), (1, 4, 5, 1), "divisible by its patch size 2, got 4x5"),
        (dict(conditioning="film"), (1, 4, 4, 1), "adaln_zero, .* got 'film'"),
        (dict(num_heads=3), (1, 4, 4, 1), "divisible by its heads, got 16 and 3"),
        (dict(width=18), (1, 4, 4, 1), "divisible by 4, got 18"),
        (dict(), (4, 4, 1), r"takes images .* got \(4, 4, 1\)"),
    ],
)
def test_what_does_not_fit(attributes, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(TINY.clone(**attributes), *shape)
