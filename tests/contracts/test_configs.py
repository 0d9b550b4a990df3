"""What every file below configs/ owes: it builds, traces, stores itself, and says how to run it."""

import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import pytest

from diffjax import configuration, workdir
from diffjax.experiment import abstract_batch, build, check_devices
from diffjax.systems import Request

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.py"))
VARIANTS = {file: runpy.run_path(str(file))["VARIANTS"] for file in FILES}
SOURCES = [
    f"{file.relative_to(ROOT)}{variant and ':'}{variant}"
    for file in FILES
    for variant in ("", *VARIANTS[file])
]
# The sections that an update depends on.
TRAINED = ("data", "loss", "model", "network", "optimizer", "prediction", "schedule")

each = pytest.mark.parametrize("source", SOURCES)
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def load(source):
    return configuration.load(ROOT / source)


def opened(config):
    """The experiment; data that need a download stay closed, their shape is in the config."""
    return build(config, open_data=not config.data.source.startswith("tfds:"))


def once_each(sources):
    """Of configs that differ in sampling alone, the first."""
    first = {}
    for source in sources:
        values = load(source).to_dict()
        first.setdefault(repr([values[name] for name in sorted(values) if name in TRAINED]), source)
    return list(first.values())


@pytest.mark.parametrize("source", once_each(SOURCES))
def test_update_traces(source):
    experiment = opened(load(source))
    batch = abstract_batch(experiment, 2 * experiment.config.train.microbatches)
    key = jax.random.key(0)
    state = jax.eval_shape(experiment.system.init, key, batch)
    after, metrics = jax.eval_shape(experiment.system.update, state, batch, key)
    assert after == state
    assert metrics["loss"].shape == ()


@each
def test_samples_trace(source):
    experiment = opened(load(source))
    if experiment.system.sample is None:  # then it is scored by its own measures
        assert experiment.system.evaluate is not None
        return
    sample = experiment.config.sample
    state = jax.eval_shape(experiment.system.init, jax.random.key(0), abstract_batch(experiment, 1))
    labels = jnp.zeros(2, int) if experiment.num_classes else None
    drawn = []

    def images(state):
        request = Request(jnp.arange(2), labels, sample.guidance)
        drawn.append(experiment.system.sample(state, jax.random.key(0), request))
        return drawn[0].images

    assert jax.eval_shape(images, state).shape == (2, *experiment.shape)
    assert drawn[0].nfe == sample.calls * (1 if sample.guidance == 1 else 2)


@each
def test_is_stored_exactly(source, tmp_path):
    config = load(source)
    workdir.save_config(config, tmp_path)
    stored = workdir.load_config(tmp_path)
    assert stored == config
    assert stored.to_dict() == config.to_dict()
    flat, back = (configuration.flatten(c.to_dict()) for c in (config, stored))
    assert {k: type(v) for k, v in flat.items()} == {k: type(v) for k, v in back.items()}


@each
def test_batch_fits_one_and_eight_devices(source):
    config = load(source)
    check_devices(config, 1)
    check_devices(config, 8)


@each_file
def test_header_is_a_record(file):
    header = runpy.run_path(str(file))["__doc__"]
    name = file.relative_to(ROOT)
    assert re.search(
        rf"^Command +python main\.py --config {name} --workdir \S+ --mode ", header, re.M
    )
    assert re.search(r"^Hardware +\S", header, re.M)
    for variant in VARIANTS[file]:
        assert re.search(rf"\b{variant}\b", header), f"{variant} is not in the header"


@each_file
def test_unknown_variant_lists_the_known(file):
    with pytest.raises(ValueError, match=rf"no variant 'slow'.*{next(iter(VARIANTS[file]))}"):
        load(f"{file.relative_to(ROOT)}:slow")
