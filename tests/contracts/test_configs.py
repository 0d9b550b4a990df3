"""What every file below configs/ owes: it builds, traces, stores itself, and says how to run it."""

import functools
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import pytest

from diffjax import components, configuration, mcmc, upsampling, workdir
from diffjax.experiment import abstract_batch, build, check_devices
from diffjax.systems import NoisePredictor, Request

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.py"))
VARIANTS = {file: runpy.run_path(str(file))["VARIANTS"] for file in FILES}
SOURCES = [
    f"{file.relative_to(ROOT)}{variant and ':'}{variant}"
    for file in FILES
    for variant in ("", *VARIANTS[file])
]
# What decides how an update goes, how samples are drawn, and what is built; nothing is gained by
# tracing the same at several sizes.
TRAINED = ("system", "network", "loss", "prediction", "optimizer.name")
SAMPLED = ("system", "network", "prediction", "sample.solver", "sample.options", "sampler", "dmcmc")
BUILT = ("system", "network", "model", "prediction", "data.shape", "data.conditional", "data.num")

each = pytest.mark.parametrize("source", SOURCES)
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def load(source):
    return configuration.load(ROOT / source)


@functools.cache
def prepared(source):
    """The experiment, and the shapes of its state.

    Data that need a download or an encoding stay closed, their shape is in the config. Where it
    names a predictor of noise levels, one that knows nothing stands in for it.
    """
    config, predictor = load(source), None
    if config.dmcmc.get("predictor"):
        noise = mcmc.noise_range(components.schedule(config))
        levels = mcmc.noise_levels(noise.t_min, noise.t_max, 20)
        shape = (8, 8, 1) if config.data.source == "digits" else config.data.shape
        predictor = NoisePredictor(lambda x: jnp.zeros((x.shape[0], 20)), levels, shape)
    if config.data.source.startswith("latents:"):
        config.data.scale = config.data.get("scale", 1.0)
    open_data = not config.data.source.startswith(("tfds:", "latents:"))
    experiment = build(config, open_data=open_data, predictor=predictor)
    batch = abstract_batch(experiment, 1)
    return experiment, jax.eval_shape(experiment.system.init, jax.random.key(0), batch)


def once_each(fields):
    """Of the configs that are alike in these fields, the first with the smallest images."""
    first = {}
    for source in sorted(SOURCES, key=lambda source: load(source).data.get("shape", (0,))):
        flat = configuration.flatten(load(source).to_dict())
        parts = {name: value for name, value in flat.items() if name.startswith(fields)}
        first.setdefault(repr(sorted(parts.items())), source)
    return list(first.values())


@pytest.mark.parametrize("source", once_each(TRAINED))
def test_update_traces(source):
    experiment, state = prepared(source)
    batch = abstract_batch(experiment, 2 * experiment.config.train.microbatches)
    after, metrics = jax.eval_shape(experiment.system.update, state, batch, jax.random.key(0))
    assert after == state
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("source", once_each(SAMPLED))
def test_samples_trace(source):
    experiment, state = prepared(source)
    if experiment.system.sample is None:  # then it is scored by its own measures
        assert experiment.system.evaluate is not None
        return
    sample = experiment.config.sample
    labels = jnp.zeros(2, int) if experiment.num_classes else None
    small = upsampling.small_shape(experiment.config)
    low_res = jnp.zeros((2, *small)) if experiment.config.data.low_res else None
    drawn = []

    def images(state):
        request = Request(jnp.arange(2), labels, sample.guidance, low_res)
        drawn.append(experiment.system.sample(state, jax.random.key(0), request))
        return drawn[0].images

    assert jax.eval_shape(images, state).shape == (2, *experiment.shape)
    assert drawn[0].nfe == sample.calls * (1 if sample.guidance == 1 else 2)


@pytest.mark.parametrize("source", once_each(BUILT))
def test_builds_the_network_that_the_file_counts(source):
    _, state = prepared(source)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    text = (ROOT / source.partition(":")[0]).read_text()
    counted = re.findall(r"\b([\d,]+) parameters", text)
    assert f"{size:,}" in counted or not counted


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
