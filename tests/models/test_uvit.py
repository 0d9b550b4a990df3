"""U-ViT. Its outputs are compared with the official ones in tests/convert."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import UVIT_SIZES, UViT, published_uvit
from diffjax.models.dit import patchify, unpatchify

TINY = UViT(width=16, depth=4, num_heads=2, num_classes=3)
X = np.random.default_rng(1).standard_normal((2, 4, 4, 1)).astype(np.float32)


def shapes(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(()))


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)))


def random_parameters(module=TINY):
    draw = np.random.default_rng(0).standard_normal
    made = jax.tree.map(lambda a: 0.3 * draw(a.shape, np.float32), shapes(module, *X[:1].shape))
    return made["params"]


@jax.jit
def apply(params, x=X):
    return TINY.apply({"params": params}, x, 500.0, jnp.array([0, 2]))


@pytest.mark.parametrize(
    ("size", "shape", "parameters"),
    [
        ("S/2", (32, 32, 3), 44_255_328),
        ("S/4", (64, 64, 3), 44_292_228),
        ("M/4", (64, 64, 3), 130_940_292 + 768),
        ("L/4", (64, 64, 3), 286_827_652 + 1024),
        ("H/2", (32, 32, 4), 500_832_016),
    ],
)
def test_published_parameter_counts(size, shape, parameters):
    """Of the conditional ones, with a null label; two had none."""
    module = published_uvit(size, num_classes=0 if size.startswith("S") else 1000)
    assert count(module, 1, *shape) == parameters
    if size == "M/4":
        without = module.clone(null_label=False)
        labels = jnp.zeros(1, int)
        made = jax.eval_shape(without.init, jax.random.key(0), jnp.zeros((1, *shape)), 0.0, labels)
        assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 130_940_292


@pytest.mark.parametrize(
    ("attributes", "parameters"),
    [
        (dict(width=32, depth=4, patch_size=2), 68_110),
        (dict(width=64, depth=4, patch_size=2, num_classes=10), 268_046),
        (dict(width=64, depth=4, patch_size=1, num_classes=10), 270_731),
        (dict(width=128, depth=6, patch_size=2, num_classes=10), 1_489_038),
    ],
)
def test_parameter_counts_of_small_networks(attributes, parameters):
    assert count(UViT(num_heads=4, **attributes), 1, 8, 8, 1) == parameters


def test_by_name():
    assert published_uvit("M/4") == UViT(patch_size=4, **UVIT_SIZES["M"])
    assert published_uvit("S-deep/2").depth == 16
    assert not published_uvit("H/2").final_conv
    for name in ["XL/2", "S2", "S/", "s/2"]:
        with pytest.raises(ValueError, match="write a size of S, S-deep, M, L, H"):
            published_uvit(name)


def test_long_skips_are_joined_last_in_first_out():
    params = random_parameters()
    width, same, zero = TINY.width, np.eye(TINY.width), np.zeros((TINY.width, TINY.width))

    def with_skips(first, last):
        """What each of the two blocks of the second half takes: its own input, or the skip."""
        chosen = {"main": np.concatenate([same, zero]), "skip": np.concatenate([zero, same])}
        kernel = np.stack([chosen[first], chosen[last]]).astype(np.float32)
        skip = {"kernel": kernel, "bias": np.zeros((2, width), np.float32)}
        return params | {"out_blocks": params["out_blocks"] | {"skip": skip}}

    def matters(params, name, layers):
        """Whether changing a block, or one layer of a half, changes the output."""
        factor = 1 + 0.5 * layers.astype(np.float32)
        changed = jax.tree.map(lambda a: (a.T * factor).T, params[name])
        return np.abs(apply(params | {name: changed}) - apply(params)).max() > 1e-4

    # Both take their own input: as if there were no skips.
    plain = {name: leaf for name, leaf in params["out_blocks"].items() if name != "skip"}
    without = TINY.clone(skip=False).apply(
        {"params": params | {"out_blocks": plain}}, X, 500.0, jnp.array([0, 2])
    )
    np.testing.assert_allclose(apply(with_skips("main", "main")), without, rtol=1e-4, atol=1e-4)
    # The first takes the output of the second block alone: the middle one has no influence.
    first = with_skips("skip", "main")
    assert not matters(first, "middle_block", np.ones(1))
    assert matters(first, "in_blocks", np.array([0, 1]))
    # The last takes the output of the first block alone.
    last = with_skips("main", "skip")
    assert not matters(last, "in_blocks", np.array([0, 1]))
    assert matters(last, "in_blocks", np.array([1, 0]))


def test_positions_belong_to_tokens():
    """Tokens may be permuted together with their positions, label and time among them."""
    params = random_parameters()
    params["final_conv"] = {  # the identity
        "kernel": np.pad(np.ones((1, 1, 1, 1), np.float32), ((1, 1), (1, 1), (0, 0), (0, 0))),
        "bias": np.zeros(1, np.float32),
    }
    order = np.array([2, 0, 3, 1])
    shuffled = np.asarray(unpatchify(patchify(X, 2)[:, order], 2, height=4))
    moved = params | {"pos_embed": params["pos_embed"][:, [0, 1, *(2 + order)]]}
    want = patchify(apply(params), 2)[:, order]
    np.testing.assert_allclose(patchify(apply(moved, shuffled), 2), want, rtol=1e-4, atol=1e-4)
    assert np.abs(patchify(apply(params, shuffled), 2) - want).max() > 1e-2


def test_starts_near_zero_but_not_at_it():
    """The loss on the noise is ``1 + 0.0004 width / 3 + 1 / (27 channels)``: nothing is zero."""
    module = UViT(width=64, depth=2, num_heads=4)
    x, noise = np.random.default_rng(0).standard_normal((2, 4, 16, 16, 3)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def start(key):
        out, _ = module.init_with_output(key, x, 500.0)
        return jnp.mean(jnp.square(out - noise)) - jnp.mean(jnp.square(noise))

    losses = 1 + start(jax.random.split(jax.random.key(0), 12))
    np.testing.assert_allclose(np.mean(losses), 1.0209, atol=0.006)
    assert np.min(losses) > 1.001


def test_rematerialisation_changes_memory_only():
    def gradient(module):
        def loss(params):
            return jnp.mean(jnp.square(module.apply({"params": params}, X, 500.0)))

        return jax.device_get(jax.jit(jax.grad(loss))(random_parameters(module)))

    small = TINY.clone(depth=2)
    plain, remat = gradient(small), gradient(small.clone(remat=True))
    chex.assert_trees_all_close(plain, remat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        (dict(), (1, 4, 5, 1), "divisible by its patch size 2, got 4x5"),
        (dict(num_heads=3), (1, 4, 4, 1), "divisible by its heads, got 16 and 3"),
        (dict(depth=3), (1, 4, 4, 1), "even depth, got 3"),
        (dict(null_label=False), (1, 4, 4, 1), "no null label: give the labels"),
        (dict(), (4, 4, 1), r"takes images .* got \(4, 4, 1\)"),
    ],
)
def test_what_does_not_fit(attributes, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(TINY.clone(**attributes), *shape)
