import json
import logging
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import parallel
from diffjax import state as states
from diffjax.checkpoint import Checkpoints, Mismatch, checksum, restore_for_sampling
from tests.training import on_host


def make_state(step=0, width=8, impl="threefry2x32") -> states.TrainState:
    """Every kind of leaf there is, its values told by the step."""
    params = {
        # Random, so that compression leaves more numbers than words on disk.
        "in": {"kernel": jax.random.normal(jax.random.key(step), (512, width))},
        "table": jnp.full((3,), step, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = states.create(jax.random.key(3, impl=impl), params, optimizer, (0.9, 0.999))
    return state.replace(step=jnp.asarray(step, jnp.int32))


def shapes_of(state, mesh=None, min_size=1):
    """Its shapes, to be restored to one device or onto a mesh."""
    mesh = mesh or parallel.make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(lambda: state)
    shardings = parallel.state_sharding(shapes, mesh, min_size)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def write(workdir, *steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step))


def restore(workdir, shapes=None):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_latest(shapes or shapes_of(make_state()))


def names(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def assert_same(found, expected):
    chex.assert_trees_all_equal(on_host(found), on_host(expected))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_everything_comes_back(tmp_path, impl):
    state = make_state(7, impl=impl)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    restored = restore(tmp_path, shapes_of(state))
    assert_same(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)


def test_nothing_to_restore_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_newest_and_every_nth_are_kept(tmp_path):
    write(tmp_path, 2, 4, 5, 6, 8, 9, 11, keep_last=2, keep_every=4)
    assert names(tmp_path) == {"4", "8", "9", "11"}


def test_saving_a_step_again_does_nothing(tmp_path):
    write(tmp_path, 3, 3)
    assert names(tmp_path) == {"3"}


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    """The write goes on behind our back; what is written is what was there."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    params = {"w": jnp.arange(2.0**20)}
    state = states.create(jnp.zeros(2, jnp.uint32), params, optax.identity(), (0.9,))
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
    chex.assert_trees_all_equal(restore(tmp_path, shapes_of(state)), expected)


@pytest.mark.parametrize("fsdp, devices", [(1, 8), (4, 8), (2, 2), (1, 1)])
def test_any_mesh_reads_what_another_wrote(tmp_path, fsdp, devices):
    state = make_state(5)
    written = jax.tree.map(
        jax.device_put, state, parallel.state_sharding(state, parallel.make_mesh("sharding", 2), 1)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(written)
    mesh = parallel.make_mesh("sharding", fsdp, jax.devices()[:devices])
    shapes = shapes_of(state, mesh)
    restored = restore(tmp_path, shapes)
    assert_same(restored, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(
        lambda leaf: leaf.sharding, shapes
    )


def copied(workdir):
    """The run under another name: what this process wrote, it would read from its own memory."""
    return shutil.copytree(workdir, workdir / "copy")


def data_file(directory):
    """The file with most of the numbers."""
    files = [path for path in (directory / "arrays").rglob("d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(directory):
    for path in directory.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(directory):
    """In the middle of the data: orbax reads that without complaint, and wrongly."""
    path = data_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(directory):
    data_file(directory).unlink()


def lose_the_manifest(directory):
    shutil.rmtree(directory / "manifest")


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGES = [truncate, flip_a_bit, lose_a_file, lose_the_manifest, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_skipped_and_named(tmp_path, caplog, damage):
    write(tmp_path, 1, 2, 3)
    workdir = copied(tmp_path)
    newest = workdir / "checkpoints" / "3"
    damage(newest)
    with caplog.at_level(logging.WARNING), Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore_latest(shapes_of(make_state()))
        assert_same(restored, make_state(2))
        (warning,) = [r.getMessage() for r in caplog.records if "SKIPPED" in r.getMessage()]
        assert f"CHECKPOINT SKIPPED: {newest} is damaged (" in warning
        assert ("the checksum of " in warning) == (damage is flip_a_bit)
        # The step can be written again, and what was damaged is kept for whoever wants to look.
        assert "3.damaged" in names(workdir)
        checkpoints.save(make_state(3))
    assert_same(restore(workdir), make_state(3))


def test_several_damaged_ones_are_skipped(tmp_path):
    write(tmp_path, 1, 2, 3, keep_last=3)
    first = copied(tmp_path)
    flip_a_bit(first / "checkpoints" / "3")
    truncate(first / "checkpoints" / "2")
    assert_same(restore(first), make_state(1))
    write(first, 2, 3, keep_last=3)
    second = copied(first)
    flip_a_bit(second / "checkpoints" / "3")
    assert_same(restore(second), make_state(2))
    assert {"3.damaged", "3.damaged.1"} < names(second)


def test_without_a_whole_one_nothing_is_lost_in_silence(tmp_path):
    write(tmp_path, 1, 2)
    truncate(tmp_path / "checkpoints" / "1")
    truncate(tmp_path / "checkpoints" / "2")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read"):
        restore(tmp_path)
    assert names(tmp_path) == {"1", "2"}


def test_crash_before_the_commit_leaves_the_one_before(tmp_path):
    """A kill in the middle of a write leaves a directory under a temporary name."""
    write(tmp_path, 1)
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp"):
        shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / name)
    shutil.rmtree(tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp" / "arrays")
    assert_same(restore(tmp_path), make_state(1))
    write(tmp_path, 2, 3)
    assert names(tmp_path) == {"2", "3"}


@pytest.mark.parametrize("reader", [restore, restore_for_sampling])
def test_another_experiment_is_an_error_and_not_damage(tmp_path, reader):
    write(tmp_path, 1)
    message = "params.in.kernel is float32[512, 8], not float32[512, 16]"
    with pytest.raises(Mismatch, match=re.escape(message)):
        reader(tmp_path, shapes_of(make_state(width=16)))
    assert names(tmp_path) == {"1"}


def test_another_format_is_an_error(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "checkpoints" / "1" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(Mismatch, match="format 99; this version reads format 1"):
        restore(tmp_path)


def test_sampling_reads_all_but_the_optimiser_and_changes_nothing(tmp_path):
    write(tmp_path, 1, 2, 3)
    workdir = copied(tmp_path)
    flip_a_bit(workdir / "checkpoints" / "3")
    before = names(workdir)
    restored = restore_for_sampling(workdir, jax.eval_shape(lambda: make_state()))
    assert_same(restored, make_state(2).replace(opt_state=()))
    assert names(workdir) == before


@pytest.mark.parametrize("made", [True, False])
def test_sampling_without_a_checkpoint_is_an_error(tmp_path, made):
    if made:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint in .*train first"):
        restore_for_sampling(tmp_path, shapes_of(make_state()))


ARRAYS = {
    "float32": np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4),
    "bfloat16": np.linspace(-3, 3, 16).astype(jnp.bfloat16).reshape(8, 2),
    "int32": np.arange(-5, 3, dtype=np.int32),
    "uint8": np.arange(200, dtype=np.uint8),
    "bool": np.array([True, False, True, True]),
    "scalar": np.float32(3.25),
    "empty": np.zeros((0, 3), np.float32),
}


def in_integers(x: np.ndarray) -> int:
    """The sum by its definition, without wrapping."""
    bits = x.reshape(-1).view(f"u{x.dtype.itemsize}").tolist()
    return sum((2 * i + 1) * value for i, value in enumerate(bits)) % 2**32


@pytest.mark.parametrize("name", ARRAYS)
def test_checksum_is_the_sum_it_says(name):
    x = ARRAYS[name]
    assert int(checksum(jnp.asarray(x))) == in_integers(np.asarray(x))


def test_checksum_of_64_bits_sees_both_halves(x64):
    x = jnp.asarray([1.5, -2.0])
    words = np.asarray(x).view(np.uint32)
    assert int(checksum(x)) == in_integers(words)


def test_checksum_does_not_depend_on_the_sharding():
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    for fsdp in (1, 2, 8):
        mesh = parallel.make_mesh("sharding", fsdp)
        placed = jax.device_put(x, parallel.state_sharding(x, mesh, min_size=1))
        assert int(jax.jit(checksum)(placed)) == in_integers(x)


def test_checksum_sees_every_single_bit():
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    flipped = np.tile(x.reshape(-1).view(np.uint32), (x.size * 32, 1))
    for k in range(len(flipped)):
        flipped[k, k // 32] ^= np.uint32(1 << (k % 32))
    sums = jax.vmap(checksum)(jnp.asarray(flipped.view(np.float32)).reshape(-1, 4, 5))
    assert int(checksum(jnp.asarray(x))) not in set(np.asarray(sums).tolist())
