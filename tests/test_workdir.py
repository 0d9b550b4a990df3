"""The config beside a run."""

import json
import pathlib

import jax.numpy as jnp
import ml_collections
import pytest

from diffjax.configuration import load, override
from diffjax.workdir import CONFIG_FILE, check_workdir, load_config, save_config

DIGITS = pathlib.Path(__file__).parent / "data/digits.py"


@pytest.fixture
def config():
    return load(DIGITS)


@pytest.fixture
def run(config, tmp_path):
    """A workdir with the config's run in it."""
    save_config(config, tmp_path)
    return tmp_path


def test_round_trip_keeps_values_and_types(config, tmp_path):
    config.model.update(
        tiny=1e-300, third=1 / 3, big=10**30, whole=1.0, nothing=None, nested=((1, 2.0), ("a", ()))
    )
    save_config(config, tmp_path / "new" / "directory")
    stored = load_config(tmp_path / "new" / "directory")
    assert stored == config
    for name, value in config.model.items():
        assert type(stored.model[name]) is type(value)
    assert type(stored.model.nested[0][1]) is float


def test_file_is_sorted_and_for_people(run):
    text = (run / CONFIG_FILE).read_text()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert [path.name for path in run.iterdir()] == [CONFIG_FILE]


def test_what_cannot_be_stored_is_refused_and_nothing_written(config, tmp_path):
    config.model.activation = jnp.tanh
    with pytest.raises(ValueError, match=r"config\.model\.activation holds a .*use numbers"):
        save_config(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


ALLOWED = [
    "sample.number=3",
    "sample.solver=ddim",
    "sample.options.eta=1.0",
    "evaluate.number=3",
    "parallel.mode=pmap",
    "train.log_every=3",
    "train.checkpoint_every=3",
    "train.keep_last=3",
    "train.keep_every=3",
    "train.sample_every=3",
    "data.options.data_dir=elsewhere",
]


@pytest.mark.parametrize("change", ALLOWED)
def test_a_run_may_be_looked_at_differently(change, config, run):
    check_workdir(override(config, [f"--config.{change}"]), run)


REFUSED = [
    "seed=1",
    "data.flip=true",
    "data.options.size=4",
    "network=unet",
    "model.width=3",
    "model.new=3",
    "schedule.name=cosine",
    "prediction.parametrization=v",
    "loss.label_dropout=0.2",
    "optimizer.learning_rate=1.0",
    "train.steps=3",
    "train.batch_size=3",
    "train.microbatches=3",
]


@pytest.mark.parametrize("change", REFUSED)
def test_a_run_may_not_become_another(change, config, run):
    with pytest.raises(ValueError, match=rf"holds another experiment, with {change.split('=')[0]}"):
        check_workdir(override(config, [f"--config.{change}"]), run)


def test_a_run_without_decay_may_go_on_for_longer(config, tmp_path):
    config.optimizer.decay = "constant"
    save_config(config, tmp_path)
    check_workdir(override(config, ["--config.train.steps=5000"]), tmp_path)


def test_what_was_inferred_need_not_be_given_again(config, tmp_path):
    resolved = ml_collections.ConfigDict(config.to_dict())
    resolved.data.update(shape=(8, 8, 1), num_classes=10)
    save_config(resolved, tmp_path)
    check_workdir(config, tmp_path)
    check_workdir(resolved, tmp_path)
    resolved.data.shape = (16, 16, 1)
    with pytest.raises(ValueError, match=r"data\.shape=\(8, 8, 1\) \(now \(16, 16, 1\)\)"):
        check_workdir(resolved, tmp_path)


def test_many_differences_are_counted(config, run):
    changes = [f"--config.{change}" for change in REFUSED]
    with pytest.raises(ValueError, match=r"and \d+ more"):
        check_workdir(override(config, changes), run)


def test_new_and_empty_workdirs_are_fine(config, tmp_path):
    check_workdir(config, tmp_path)
    check_workdir(config, tmp_path / "new" / "directory")
    assert not any(tmp_path.iterdir())
