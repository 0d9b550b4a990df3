"""Drawing and its files: any number, any split over batches and devices, the same pictures."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import configuration, data, parallel, sampling
from diffjax.experiment import build

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"{ROOT}/configs/digits/default.py:mlp,quick"
SMALL = (
    "model.width=8",
    "model.depth=1",
    "sample.calls=4",
    "sample.solver=ddim",
    "sample.guidance=1.0",
)


def make(*overrides):
    """A quick experiment with stochastic sampling, and overrides ``name=value``."""
    arguments = (*SMALL, "sample.options.eta=1.0", *overrides)
    config = configuration.override(
        configuration.load(QUICK), [f"--config.{argument}" for argument in arguments]
    )
    return build(config)


def untrained(experiment):
    """A state whose network says something: the initial one has blocks and output of zeros."""
    example = {"image": np.zeros((1, *experiment.shape), np.uint8), "label": np.zeros(1, np.int32)}
    state = jax.jit(experiment.system.init)(jax.random.key(0), example)
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.map(np.add, state.params, jax.tree.unflatten(tree, noise))
    return state.replace(params=params, ema=dict.fromkeys(state.ema, params))


@pytest.fixture(scope="module")
def experiment():
    return make()


@pytest.fixture(scope="module")
def state(experiment):
    return untrained(experiment)


LABELS = np.arange(20, dtype=np.int32) % 7


@pytest.fixture(scope="module")
def twenty(experiment, state):
    """Samples 0 to 19 of seed 3, in one batch."""
    return sampling.draw(experiment, state, number=20, labels=LABELS, guidance=1.5, seed=3)


def assert_same_pictures(found, expected):
    """Equal up to rounding, which moves a value by a grey level where it is halfway."""
    apart = np.abs(found.astype(int) - expected.astype(int))
    assert found.shape == expected.shape and apart.max() <= 1 and (apart > 0).mean() < 1e-2


def test_what_is_drawn(twenty):
    assert twenty.images.shape == (20, 8, 8, 1) and twenty.images.dtype == np.uint8
    np.testing.assert_array_equal(twenty.labels, LABELS)
    assert twenty.nfe == 8
    # Every sample is a picture of its own.
    assert len(np.unique(twenty.images.reshape(20, -1), axis=0)) == 20
    assert twenty.images.std() > 20


@pytest.mark.parametrize(
    ("mode", "batch_size", "number"), [("sharding", 3, 19), ("pmap", 8, 20), ("pmap", 500, 5)]
)
def test_neither_batches_nor_devices_nor_mode_change_the_pictures(
    twenty, state, mode, batch_size, number
):
    experiment = make(f"parallel.mode={mode}", f"sample.batch_size={batch_size}")
    drawn = sampling.draw(
        experiment, state, number=number, labels=LABELS[:number], guidance=1.5, seed=3
    )
    assert_same_pictures(drawn.images, twenty.images[:number])
    assert drawn.nfe == 8


@pytest.mark.parametrize(("devices", "mode", "fsdp"), [(1, "sharding", 1), (4, "sharding", 2)])
def test_other_numbers_of_devices_draw_the_same(experiment, state, twenty, devices, mode, fsdp):
    mesh = parallel.make_mesh(mode, fsdp, jax.devices()[:devices])
    placed = jax.device_put(state, parallel.state_sharding(state, mesh, min_size=1))
    run, nfe = sampling.compile_draw(experiment, mesh, guidance=1.5)
    images = run(placed, jax.random.key(3), np.arange(20), LABELS)
    assert_same_pictures(images, twenty.images)
    assert nfe() == 8


def test_a_run_sharded_over_more_devices_than_there_are_can_be_drawn_from(twenty, state):
    """Eight devices share what 16 shared in training."""
    drawn = sampling.draw(
        make("parallel.fsdp=16"), state, number=20, labels=LABELS, guidance=1.5, seed=3
    )
    assert_same_pictures(drawn.images, twenty.images)


def test_another_seed_draws_others_and_no_guidance_costs_half(experiment, state, twenty):
    drawn = sampling.draw(experiment, state, number=20, labels=LABELS, seed=4)
    assert drawn.nfe == 4
    assert (drawn.images != twenty.images).mean() > 0.5


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (7, None, "this system needs labels: 6 integers in 0..6"),
        (7, [0, 1, 2], "needs labels: 6 integers in 0..6"),
        (7, [0, 1, 2, 3, 4, 7], "needs labels: 6 integers in 0..6"),
        (7, [0, 1, 2, 3, 4, -1], "needs labels: 6 integers in 0..6"),
        (7, [0.0] * 6, "needs labels: 6 integers in 0..6"),
        (0, [0] * 6, "this system is unconditional and takes no labels"),
    ],
)
def test_labels_that_do_not_fit(experiment, state, classes, labels, message):
    experiment = experiment._replace(num_classes=classes)
    with pytest.raises(ValueError, match=message):
        sampling.draw(experiment, state, number=6, labels=labels)


# Files.


@pytest.mark.parametrize(
    ("labels", "number", "expected", "grid"),
    [
        ("cycle", 13, np.arange(13) % 10, (10, 2)),  # not a multiple of the batch, nor of classes
        ("3,3,7", 7, [3, 3, 7, 3, 3, 7, 3], (3, 3)),
        ("random", 6, None, (3, 2)),
    ],
)
def test_files_of_samples(tmp_path, capsys, state, labels, number, expected, grid):
    settings = (f"sample.labels={labels}", f"sample.number={number}", "sample.batch_size=8")
    experiment = make(*settings)
    path = sampling.sample(experiment, state, tmp_path)
    assert path.parent == tmp_path / "samples"
    with np.load(path) as stored:
        assert sorted(stored.files) == ["arr_0", "arr_1"]
        images, found = stored["arr_0"], stored["arr_1"]
    assert images.shape == (number, 8, 8, 1) and images.dtype == np.uint8
    assert np.issubdtype(found.dtype, np.integer) and found.shape == (number,)
    if expected is None:
        assert ((found >= 0) & (found < 10)).all() and len(set(found)) > 2
    else:
        np.testing.assert_array_equal(found, expected)
    # The sheet shows them in order, row by row.
    with Image.open(path.with_suffix(".png")) as picture:
        columns, rows = grid
        assert picture.size == (40 * columns, 40 * rows)
        np.testing.assert_array_equal(picture, data.contact_sheet(images, columns)[..., 0])
    said = capsys.readouterr().out
    assert f"{number} samples at 4 network evaluations each" in said and str(path) in said
    # The file is data like any other.
    source = data.create(f"arrays:{path}", split="all")
    np.testing.assert_array_equal(source.images, images)
    np.testing.assert_array_equal(source.labels, found)
    if labels == "cycle":
        alone = sampling.draw(experiment, state, number=13, labels=found, seed=0)
        np.testing.assert_array_equal(images, alone.images)


def test_files_of_an_unconditional_system(tmp_path):
    experiment = make("data.conditional=False", "sample.number=3")
    path = sampling.sample(experiment, untrained(experiment), tmp_path)
    with np.load(path) as stored:
        assert stored.files == ["arr_0"] and stored["arr_0"].shape == (3, 8, 8, 1)
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (80, 80)


def test_many_classes_do_not_make_a_wide_sheet(tmp_path, monkeypatch, experiment, state):
    monkeypatch.setattr(
        sampling,
        "draw",
        lambda *_, number, labels, **__: sampling.Drawn(
            np.zeros((number, 8, 8, 3), np.uint8), labels, 1
        ),
    )
    many = experiment._replace(num_classes=1000)
    path = sampling.sample(many, state, tmp_path)
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (40 * 5, 40 * 4) and picture.mode == "RGB"


def test_other_settings_never_share_a_name(experiment, state, twenty):
    base = sampling.name(experiment, state, twenty)
    assert base == sampling.name(make(), state, twenty)
    others = dict(
        number=7,
        batch_size=7,
        seed=7,
        labels="'3,3'",
        solver="euler",
        calls=9,
        grid="quadratic",
        denoise=False,
        guidance=1.2,
        guidance_interval=(0.5, 2.0),
        guidance_channels=1,
        threshold="static",
        classifier="runs/judge",
        low_res="small.npz",
        ema="0.99",
    )
    config = experiment.config.sample
    assert others.keys() == set(config.keys()) - {"options"}
    names = {base}
    for field, value in others.items():
        changed = experiment.config.copy_and_resolve_references()
        changed.sample[field] = value
        names.add(sampling.name(experiment._replace(config=changed), state, twenty))
    changed = experiment.config.copy_and_resolve_references()
    changed.sample.options.eta = 0.5
    names.add(sampling.name(experiment._replace(config=changed), state, twenty))
    names.add(sampling.name(experiment, state.replace(step=state.step + 1), twenty))
    names.add(sampling.name(experiment, state, twenty._replace(images=twenty.images[:5])))
    assert len(names) == len(others) + 4
    assert all(name.endswith(".npz") and "/" not in name for name in names)
