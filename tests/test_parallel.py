import functools
import re
import socket
import subprocess
import sys
import textwrap

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffjax import parallel
from diffjax import train as loops
from diffjax.data import pipeline
from tests import training

EIGHT, STEPS = 8, 3


@pytest.mark.parametrize("fsdp, data", [(1, 8), (2, 4), (8, 1)])
def test_mesh_has_two_axes_and_keeps_the_order_of_devices(fsdp, data):
    mesh = parallel.make_mesh("sharding", fsdp)
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp}
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize("trained, shared", [(1, 1), (4, 4), (16, 8), (12, 4), (3, 1)])
def test_a_run_is_drawn_from_on_other_devices_than_it_was_trained_on(trained, shared):
    assert parallel.sampling_mesh(trained).shape["fsdp"] == shared


@pytest.mark.parametrize(
    "mode, fsdp, message",
    [
        ("sharding", 3, "fsdp=3 must divide the number of devices, 8"),
        ("sharding", 0, "fsdp=0 must divide"),
        ("pmap", 2, "fsdp must be 1, not 2"),
        ("pjit", 1, "unknown parallel mode 'pjit': choose one of sharding, pmap"),
    ],
)
def test_mesh_that_cannot_be_is_an_error(mode, fsdp, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parallel.make_mesh(mode, fsdp)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((256, 128), ("fsdp",)),
        ((128, 256), (None, "fsdp")),
        ((128, 128), (None, "fsdp")),
        ((3, 3, 64, 66), (None, None, "fsdp")),  # 66 is larger, but 4 does not divide it
        ((129, 255), ()),
        ((32, 32), ()),  # too small
        ((), ()),
    ],
)
def test_rule_takes_the_largest_divisible_dimension_of_big_arrays(shape, expected):
    mesh = parallel.make_mesh("sharding", 4)
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert parallel.state_sharding(leaf, mesh).spec == PartitionSpec(*expected)


def test_without_fsdp_everything_is_replicated():
    leaf = jax.ShapeDtypeStruct((256, 256), np.float32)
    assert parallel.state_sharding(leaf, parallel.make_mesh()).spec == PartitionSpec()


@pytest.mark.parametrize("mode", parallel.MODES)
def test_batch_rows_lie_on_devices_in_order(mode):
    rows = np.arange(16, dtype=np.int32)
    placed = parallel.place_batch({"label": rows}, parallel.make_mesh(mode), mode)["label"]
    assert len(placed.sharding.device_set) == EIGHT
    for i, shard in enumerate(placed.addressable_shards):
        np.testing.assert_array_equal(np.ravel(shard.data), [2 * i, 2 * i + 1])


@functools.cache
def run(mode, fsdp, devices, microbatches):
    """Trains a few steps and returns the states, with what was compiled."""
    config = training.make_config(mode, fsdp, microbatches=microbatches)
    experiment = training.make_experiment(config, training.diffusion)
    mesh = parallel.make_mesh(mode, fsdp, jax.devices()[:devices])
    shapes = loops.state_shapes(experiment)
    shardings = parallel.state_sharding(shapes, mesh, min_size=64)
    example = {"image": np.zeros((1, *training.SHAPE), np.uint8), "label": np.zeros(1, int)}
    init = jax.jit(experiment.system.init, out_shardings=shardings)
    states = [init(jax.random.key(0), example)]
    stream = pipeline.batches(experiment.source, batch_size=24, seed=0)
    for _ in range(STEPS):
        batch = parallel.place_batch(next(stream), mesh, mode)
        if len(states) == 1:
            update = parallel.compile_update(experiment.system, states[0], batch, mesh, mode)
        state, metrics = update(states[-1], batch)
        states.append(state)
    return states, metrics, update, shardings


@pytest.fixture(scope="module")
def on_one_device():
    states, metrics, _, _ = run("sharding", 1, 1, 1)
    final = states[-1]
    return jax.device_get((final.params, final.ema, final.opt_state, metrics))


@pytest.mark.parametrize(
    "mode, fsdp, microbatches",
    [("sharding", 1, 1), ("sharding", 2, 3), ("sharding", 4, 1), ("pmap", 1, 1)],
)
def test_eight_devices_train_what_one_trains(on_one_device, mode, fsdp, microbatches):
    states, metrics, update, shardings = run(mode, fsdp, EIGHT, microbatches)
    final = states[-1]
    found = jax.device_get((final.params, final.ema, final.opt_state, metrics))
    chex.assert_trees_all_close(found, on_one_device, rtol=1e-5, atol=1e-5)

    # Donated: each state's memory became the next one's.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[:-1]))
    size = sum(
        np.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves((final.params, final.ema, final.opt_state)),
            jax.tree.leaves((shardings.params, shardings.ema, shardings.opt_state)),
            strict=True,
        )
    )
    assert update.memory_analysis().alias_size_in_bytes >= size

    # Still where it was put.
    kept = jax.tree.map(
        lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim),
        final,
        shardings,
    )
    assert all(jax.tree.leaves(kept))
    split = [not s.is_fully_replicated for s in jax.tree.leaves(shardings.opt_state)]
    assert any(split) == (fsdp > 1)


def test_fsdp_gathers_weights_and_never_the_batch():
    update = run("sharding", 4, EIGHT, 1)[2]
    gathered = re.findall(r"= \(?f32\[([\d,]*)\]\S* all-gather", update.as_text())
    shapes = [tuple(map(int, shape.split(","))) for shape in gathered]
    assert (16, 32) in shapes  # the modulation's kernel
    assert not any(24 in shape for shape in shapes)  # 24 is the batch, and no size of a weight


@pytest.mark.parametrize(
    "mode, axis, message",
    [
        ("pmap", None, "under pmap the system must be built with axis='batch'"),
        ("sharding", "batch", "in mode 'sharding' build the system with axis=None"),
    ],
)
def test_system_built_for_the_other_mode_is_an_error(mode, axis, message):
    system = training.mean_image(training.make_config(), axis)
    mesh = parallel.make_mesh(mode)
    batch = {"image": np.zeros((16, *training.SHAPE), np.uint8), "label": np.zeros(16, int)}
    state = jax.jit(
        system.init, out_shardings=parallel.batch_sharding(mesh).update(spec=PartitionSpec())
    )(jax.random.key(0), batch)
    with pytest.raises(ValueError, match=re.escape(message)):
        parallel.compile_update(system, state, parallel.place_batch(batch, mesh, mode), mesh, mode)


HOST = """
    import functools
    import sys
    import jax
    workdir, port, host = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(host))
    from diffjax import parallel
    from diffjax.train import train
    from tests import training
    parallel.MIN_SHARDED_SIZE = 8
    parallel.state_sharding = functools.partial(parallel.state_sharding, min_size=8)
    experiment = training.make_experiment(training.make_config(fsdp=4, sample_every=3))
    state = train(experiment, workdir)
    shards = state.params["mean"].sharding.shard_shape(training.SHAPE)
    print("shards", shards, "hosts", jax.process_count(), flush=True)
"""


def test_two_hosts_train_what_one_trains(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    script = tmp_path / "host.py"
    script.write_text(textwrap.dedent(HOST))
    hosts = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "two", port, str(host)],
            env=training.environment(devices=4),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    outputs = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert all("shards (4, 1, 1) hosts 2" in output for output in outputs)
    assert "step 6/6" in outputs[0] and "step 6/6" not in outputs[1]  # only the first reports

    experiment = training.make_experiment()
    alone = loops.train(experiment, tmp_path / "one")
    both = training.restore(experiment, tmp_path / "two")
    chex.assert_trees_all_close(both, training.on_host(alone), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "two" / "samples").iterdir()) == [
        "00000003.png",
        "00000006.png",
    ]
