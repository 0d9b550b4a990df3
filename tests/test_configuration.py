"""Reading, overriding and validating configs."""

import pathlib

import ml_collections
import pytest

from diffjax import configuration
from diffjax.configuration import DEFAULTS, FIELDS, INFERRED, flatten, load, override, validate

DIGITS = pathlib.Path(__file__).parent / "data/digits.py"


@pytest.fixture
def config():
    return load(DIGITS)


OVERRIDES = {
    "equals": (["--config.train.steps=7"], {"train.steps": 7}),
    "space": (["--config.train.steps", "7"], {"train.steps": 7}),
    "one dash": (["-config.train.steps=7"], {"train.steps": 7}),
    "last one counts": (["--config.seed=1", "--config.seed=2"], {"seed": 2}),
    "integer for a float": (
        ["--config.optimizer.learning_rate=1"],
        {"optimizer.learning_rate": 1.0},
    ),
    "flag": (["--config.data.flip"], {"data.flip": True}),
    "no flag": (["--noconfig.data.conditional"], {"data.conditional": False}),
    "flag in words": (["--config.data.flip=true"], {"data.flip": True}),
    "tuple": (["--config.optimizer.ema_rates=0.9,0.99"], {"optimizer.ema_rates": (0.9, 0.99)}),
    "tuple of one": (["--config.optimizer.ema_rates=0.9"], {"optimizer.ema_rates": (0.9,)}),
    "string of digits": (["--config.sample.labels=3"], {"sample.labels": "3"}),
    "equals sign in a value": (["--config.data.source=folder:a=b"], {"data.source": "folder:a=b"}),
    "new option": (["--config.sample.options.eta=0.5"], {"sample.options": {"eta": 0.5}}),
    "new option, a word": (
        ["--config.sample.options.variance=large"],
        {"sample.options": {"variance": "large"}},
    ),
    "new option, a list": (["--config.model.ch_mult=[1,2]"], {"model.ch_mult": (1, 2)}),
    "whole section": (["--config.sample.options={'eta': 1.0}"], {"sample.options": {"eta": 1.0}}),
    "negative number": (
        ["--config.loss.times_options.mean", "-0.5"],
        {"loss.times_options.mean": -0.5},
    ),
}


@pytest.mark.parametrize("arguments, expected", OVERRIDES.values(), ids=OVERRIDES)
def test_override(arguments, expected, config):
    before = config.to_dict()
    after = override(config, arguments).to_dict()
    for field, value in expected.items():
        node = after
        for part in field.split("."):
            node = node[part]
        assert node == value and type(node) is type(value)
        root = field.split(".")[0]
        after[root] = before[root]
    assert after == before == config.to_dict()


def test_without_overrides_nothing_changes(config):
    assert override(config, []) == config


def test_every_field_is_in_the_example_or_inferred(config):
    flat = flatten(config.to_dict())
    for field in FIELDS:
        assert field in INFERRED or any(f == field or f.startswith(f"{field}.") for f in flat)


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - {*INFERRED, *DEFAULTS}))
def test_no_field_may_be_missing(field, config):
    section, _, name = field.rpartition(".")
    with config.unlocked():
        del (config[section] if section else config)[name]
    with pytest.raises(ValueError, match=rf"config\.{field} is missing"):
        validate(config)


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_may_hold_just_anything(field, config):
    section, _, name = field.rpartition(".")
    with config.unlocked(), (config[section] if section else config).ignore_type():
        (config[section] if section else config)[name] = {1, 2}
    with pytest.raises(ValueError, match=rf"config\.{field} must be "):
        validate(config)


def test_lists_become_tuples(tmp_path):
    source = DIGITS.read_text().replace("(0.99, 0.999)", "[0.99, 0.999]")
    (tmp_path / "lists.py").write_text(source)
    assert load(tmp_path / "lists.py").optimizer.ema_rates == (0.99, 0.999)


def test_config_file_sees_its_own_globals_and_path(tmp_path):
    source = DIGITS.read_text()
    source = source.replace("config.seed = 0", "config.seed = SEED + len(__file__) * 0")
    (tmp_path / "globals.py").write_text(f"SEED = 7\n{source}")
    assert load(tmp_path / "globals.py").seed == 7
    assert [path.name for path in tmp_path.iterdir()] == ["globals.py"]


def test_stored_config_is_a_config_source(config, tmp_path):
    from diffjax.workdir import save_config

    save_config(config, tmp_path)
    assert load(tmp_path / "config.json") == config


def test_flatten_keeps_empty_sections():
    assert flatten({"a": {"b": 1, "c": {}}, "d": (1,)}) == {"a.b": 1, "a.c": {}, "d": (1,)}


def test_near_names_are_suggested():
    assert configuration.unknown_field("train.steps") is None
    assert configuration.unknown_field("train") is None
    assert configuration.unknown_field("model.anything.at_all") is None
    error = configuration.unknown_field("optimizer.learning_rat")
    assert "did you mean config.optimizer.learning_rate?" in str(error)
    assert "config.optimizer has name, options" in str(error)


def test_not_a_config_dict_is_told(tmp_path):
    (tmp_path / "plain.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(ValueError, match=r"plain\.py: get_config returned dict"):
        load(tmp_path / "plain.py")


def test_locked_configs_are_no_obstacle(config):
    locked = ml_collections.ConfigDict(config.to_dict()).lock()
    assert override(locked, ["--config.sample.options.eta=1.0"]).sample.options.eta == 1.0
