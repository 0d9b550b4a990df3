import os
import random
import re
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import parallel
from diffjax import train as loops
from diffjax.data import pipeline
from diffjax.logging import read_metrics
from diffjax.systems import Samples
from diffjax.train import TrainingDiverged, preview, train
from tests import training
from tests.training import make_config, make_experiment, on_host


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def records(workdir):
    """What ``metrics.jsonl`` says, but for the speed."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def assert_same_run(first, second):
    """Two runs that ended with the same state, to the bit, and told the same."""
    experiment = make_experiment()
    chex.assert_trees_all_equal(*(training.restore(experiment, path) for path in (first, second)))
    assert records(first) == records(second)


def changed(experiment, update):
    """The experiment with another update."""
    return experiment._replace(system=experiment.system._replace(update=update))


def test_run_leaves_what_it_should(tmp_path, capsys):
    config = make_config(steps=7, sample_every=3, keep_every=4)
    state = train(make_experiment(config, training.diffusion), tmp_path)
    assert state.step == 7
    assert names(tmp_path / "checkpoints") == ["4", "6", "7"]
    assert names(tmp_path / "samples") == ["00000003.png", "00000006.png", "00000007.png"]
    assert [line["step"] for line in records(tmp_path)] == [2, 4, 6, 7]
    out = capsys.readouterr().out
    assert "training from step 0 to 7: 3,040 parameters on 8 cpu devices" in out
    assert re.search(r"^compiled in \d+\.\d s$", out, re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    train(make_experiment(), workdir)
    return workdir


def test_finished_run_says_so_and_changes_nothing(whole, capsys):
    def files():
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}

    before, state = files(), training.restore(make_experiment(), whole)
    again = train(make_experiment(), whole)
    chex.assert_trees_all_equal(on_host(again), state)
    assert f"finished: {whole} holds the state of step 6" in capsys.readouterr().out
    assert files() == before


@pytest.mark.parametrize("mode, fsdp", [("sharding", 4), ("pmap", 1)])
def test_resumed_run_ends_like_one_that_never_stopped(tmp_path, mode, fsdp):
    for path, ends in ((tmp_path / "one", [6]), (tmp_path / "two", [4, 6])):
        for steps in ends:
            train(make_experiment(make_config(mode, fsdp, steps=steps)), path)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_run_goes_on_in_another_mode(tmp_path, whole):
    """Not to the bit: sums over devices are taken in another order."""
    for mode, fsdp, steps in (("sharding", 2, 2), ("pmap", 1, 4), ("sharding", 8, 6)):
        state = train(make_experiment(make_config(mode, fsdp, steps=steps)), tmp_path)
    alone = training.restore(make_experiment(), whole)
    chex.assert_trees_all_close(on_host(state), alone, rtol=1e-5, atol=1e-6)


def test_update_is_traced_once_a_run_also_when_resumed(tmp_path):
    traces = []

    def counted(update):
        def traced(*arguments):
            traces.append(len(traces))
            return update(*arguments)

        return traced

    for runs, steps in ((1, 4), (2, 8)):
        experiment = make_experiment(make_config(steps=steps, sample_every=2))
        train(changed(experiment, counted(experiment.system.update)), tmp_path)
        assert len(traces) == runs


@pytest.mark.parametrize(
    "step, bad", [(1, np.nan), (3, np.inf), (4, np.nan), (6, np.nan), (8, np.inf)]
)
def test_bad_loss_stops_at_its_step_and_keeps_the_last_good_state(tmp_path, step, bad):
    """Wherever the step lies between checkpoints, and however late its loss is read."""
    experiment = make_experiment(make_config(steps=8, checkpoint_every=3, log_every=100))
    update = experiment.system.update

    def diverging(state, batch, key):
        new, metrics = update(state, batch, key)
        worse = jnp.where(new.step >= step, bad, 1.0)
        params = jax.tree.map(lambda leaf: leaf * worse, new.params)
        return new.replace(params=params), metrics | {"loss": metrics["loss"] * worse}

    with pytest.raises(TrainingDiverged, match=rf"the loss is {bad} at step {step}; "):
        train(changed(experiment, diverging), tmp_path)
    last = (step - 1) // 3 * 3
    kept = [str(s) for s in (3, 6) if s <= last]
    assert names(tmp_path / "checkpoints") == kept
    if kept:
        restored = training.restore(experiment, tmp_path)
        assert restored.step == last
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.params))


def test_bad_parameters_behind_a_good_loss_are_not_saved(tmp_path):
    experiment = make_experiment(make_config(steps=8))
    update = experiment.system.update

    def diverging(state, batch, key):
        new, metrics = update(state, batch, key)
        worse = jnp.where(new.step == 4, jnp.nan, 1.0)
        return new.replace(params=jax.tree.map(lambda leaf: leaf * worse, new.params)), metrics

    message = r"parameters are not finite at step 4; step 2 is kept in .*checkpoints"
    with pytest.raises(TrainingDiverged, match=message):
        train(changed(experiment, diverging), tmp_path)
    assert names(tmp_path / "checkpoints") == ["2"]


def interrupted(monkeypatch, number, step):
    """Sends this process a signal while batch ``step`` is fetched."""
    batches = pipeline.batches

    def interrupting(*arguments, start_step, **options):
        stream = batches(*arguments, start_step=start_step, **options)
        for i, batch in enumerate(stream, start_step + 1):
            if i == step:
                signal.raise_signal(number)
            yield batch

    monkeypatch.setattr(pipeline, "batches", interrupting)


@pytest.mark.parametrize(
    "number, ending, step",
    [
        (signal.SIGTERM, SystemExit, 1),
        (signal.SIGTERM, SystemExit, 4),
        (signal.SIGINT, KeyboardInterrupt, 3),
    ],
)
def test_signal_saves_and_the_run_goes_on_from_there(
    tmp_path, monkeypatch, capsys, whole, number, ending, step
):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(ending) as caught:
        interrupted(patch, number, step)
        train(make_experiment(), tmp_path)
    if ending is SystemExit:
        assert caught.value.code == 0
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert f"stopped and saved at step {step}; start again" in capsys.readouterr().out
    assert str(step) in names(tmp_path / "checkpoints")
    train(make_experiment(), tmp_path)
    experiment = make_experiment()
    states = [training.restore(experiment, workdir) for workdir in (tmp_path, whole)]
    chex.assert_trees_all_equal(*states)
    assert [line["step"] for line in records(tmp_path)] == [2, 4, 6]


@pytest.fixture
def ctrl_c():
    """SIGINT as in a terminal; in a background job of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_signal_acts_at_once(tmp_path, monkeypatch, ctrl_c):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, signal.SIGINT, 3)
        interrupted(patch, signal.SIGINT, 3)
        train(make_experiment(make_config(checkpoint_every=100)), tmp_path)
    assert names(tmp_path / "checkpoints") == []


def start(workdir, steps, cache):
    """A run in a process of its own, which checkpoints at every step."""
    options = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, training.__file__, workdir, str(steps)],
        env=training.environment(devices=8) | options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_compiled(lines):
    return next(line for line in lines if line.startswith("compiled"))


def end(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def test_killed_at_any_moment_a_run_ends_the_same(tmp_path):
    """Three times ``kill -9``, once SIGTERM, each at a random moment; then to the end."""
    steps = 100
    train(make_experiment(training.often(steps)), tmp_path / "whole")
    moments = random.Random(time.time_ns())
    reached = []
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start(tmp_path / "killed", steps, tmp_path / "cache")
        # By lines, one a step, as a busy machine may be slow; then anywhere within a step or two.
        until_compiled(process.stdout)
        for _ in range(moments.randrange(20)):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(number)
        code, output = end(process)
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL), output
        done = names(tmp_path / "killed" / "checkpoints")
        reached.append(max((int(name) for name in done if name.isdigit()), default=0))
    assert reached == sorted(reached) and reached[-1] < steps, reached
    code, output = end(start(tmp_path / "killed", steps, tmp_path / "cache"))
    assert code == 0 and "SKIPPED" not in output, output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def grey(image):
    return np.round(np.asarray(image) / 255 * training.CLASSES).astype(int)


def test_preview_has_a_column_for_each_class(tmp_path):
    """Of 13 samples 12 are shown: four rows of the three classes."""
    train(make_experiment(make_config(steps=2, sample_every=2)), tmp_path)
    with Image.open(tmp_path / "samples" / "00000002.png") as sheet:
        cells = grey(sheet)[24::48, 24::48]
    np.testing.assert_array_equal(cells, np.tile(np.arange(3), (4, 1)))


@pytest.mark.parametrize("devices", [1, 8])
def test_preview_is_drawn_with_fixed_seeds_from_the_chosen_average(devices):
    """The same picture each time and on any number of devices, changed by the average alone."""
    config = make_config()
    experiment = make_experiment(config)._replace(num_classes=0)

    def sample(state, key, request):
        assert request.labels is None
        draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), training.SHAPE))
        return Samples(draw(request.index) / 4 + state.ema["0.9"]["mean"], None, 1)

    experiment = experiment._replace(system=experiment.system._replace(sample=sample))
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    state = loops._initial(experiment, jax.random.key(0), loops.state_shapes(experiment, mesh))
    draw = preview(experiment, jax.random.key(1), mesh)
    sheet = draw(state)
    assert sheet.shape == (192, 192, 1)  # 13 pictures of 4 x 4, on a square
    np.testing.assert_array_equal(sheet, draw(state.replace(params={"mean": jnp.ones(())})))
    assert not np.array_equal(sheet, draw(state.replace(ema={"0.9": {"mean": jnp.ones(())}})))
    reference = preview(experiment, jax.random.key(1), parallel.make_mesh())
    chex.assert_trees_all_equal(sheet, reference(jax.device_get(state)))


def test_batch_that_devices_cannot_share_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"config\.train\.batch_size=12 must be a multiple of 8"):
        train(make_experiment(make_config(batch_size=12)), tmp_path)
    assert not os.listdir(tmp_path)


def test_workdir_of_another_system_is_an_error(tmp_path):
    train(make_experiment(make_config(steps=2)), tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint .*: it holds another state"):
        train(make_experiment(make_config(steps=4), training.diffusion), tmp_path)
