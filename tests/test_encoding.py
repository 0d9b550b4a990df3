"""Latent diffusion from the command line: images are encoded once, trained on, drawn, decoded."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import configuration, data, encoding, parallel, sampling, serving, train
from diffjax.checkpoint import Checkpoints, restore_for_sampling
from diffjax.experiment import build
from diffjax.workdir import load_config, save_config

ROOT = pathlib.Path(__file__).parent.parent
main = runpy.run_path(str(ROOT / "main.py"))["main"]
IMAGES = f"{ROOT}/configs/patches/autoencoder.py:quick"
LATENT = f"{ROOT}/configs/patches/latent.py:quick"
NUMBER = 20  # images encoded


def run(mode, workdir, *arguments) -> int:
    return main(["main.py", f"--mode={mode}", f"--workdir={workdir}", *arguments])


def make_autoencoder(workdir, seed, *overrides):
    """The run of an autoencoder with parameters at random."""
    arguments = [
        f"--config.data.options.length={NUMBER}",
        "--config.model.widths=(4,4)",
        "--config.model.num_groups=2",
        *overrides,
    ]
    config = configuration.override(configuration.load(IMAGES), arguments)
    experiment = build(config)
    draw = np.random.default_rng(seed).standard_normal
    shapes = train.state_shapes(experiment)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw(leaf.shape, np.float32)), shapes)
    state = shapes.replace(
        params=params.params,
        ema=params.ema,
        opt_state=(),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
    )
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state)
    save_config(experiment.config, workdir)
    return workdir


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with two autoencoders, and the latents of the first."""
    root = tmp_path_factory.mktemp("latents")
    make_autoencoder(root / "autoencoder", 0)
    make_autoencoder(root / "other", 1)
    arguments = [
        f"--config={IMAGES}",
        f"--config.data.options.length={NUMBER}",
        f"--config.data.autoencoder={root}/autoencoder",
    ]
    assert run("encode", root / "encoded", *arguments) == 0
    return root


def latents_of(place):
    return [
        f"--config={LATENT}",
        f"--config.data.source=latents:{place}/encoded",
        f"--config.data.autoencoder={place}/autoencoder",
    ]


def images():
    return data.in_memory(data.create("patches", split="train", size=8, length=NUMBER))


def encode(directory, autoencoder, source=None, **options):
    described = dict(source="patches", options=dict(size=8, length=NUMBER))
    return encoding.encode(source or images(), autoencoder, directory, images=described, **options)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_latents_are_the_autoencoders_own(place):
    autoencoder = serving.load_autoencoder(place / "autoencoder")
    source = data.create(f"latents:{place}/encoded")
    apply = jax.jit(
        lambda x: autoencoder.network.apply({"params": autoencoder.params}, x, method="encode")
    )
    x = data.to_float(images().images)
    for rows, pixels in ((slice(NUMBER), x), (slice(NUMBER, None), x[:, :, ::-1])):
        expected = jnp.concatenate(apply(pixels), axis=-1)
        stored = [source[i] for i in range(len(source))[rows]]
        np.testing.assert_allclose([s["image"] for s in stored], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal([s["label"] for s in stored], images().labels)
    assert len(source) == 2 * NUMBER and source.shape == (4, 4, 2) and source.num_classes == 2
    assert source.levels == 0 and source.encoded_by == autoencoder.digest
    with pytest.raises(IndexError):
        source[2 * NUMBER]
    # What samples are scored against are the images.
    real = data.create_images(source.name, split="test")
    assert real.shape == (8, 8, 3) and len(real) == NUMBER


def test_scale_makes_unit_variance(place):
    source = data.create(f"latents:{place}/encoded")
    moments = np.stack([source[i]["image"] for i in range(len(source))])
    mean, log_variance = np.split(moments, 2, -1)
    noise = np.random.default_rng(0).standard_normal((100, *mean.shape))
    draws = source.scale * (mean + np.exp(log_variance / 2) * noise)
    np.testing.assert_allclose(draws.std(), 1, rtol=0.01)


def test_a_published_scale_is_kept(place, tmp_path):
    autoencoder = serving.load_autoencoder(place / "autoencoder")._replace(scale=0.18215)
    record = encode(tmp_path, autoencoder)
    assert record["scale"] == 0.18215 and record["std"] > 0


class Interrupted:
    """Images of which one cannot be read, or none before another."""

    def __init__(self, *, broken=-1, first=0):
        self.source, self.broken, self.first = images(), broken, first

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == self.broken or index < self.first:
            raise OSError("this image is not read")
        return self.source[index]


def test_interrupted_goes_on_to_the_same_files(place, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ROUND", 8)
    autoencoder = serving.load_autoencoder(place / "autoencoder")
    encode(tmp_path / "whole", autoencoder, flip=True)
    with pytest.raises(OSError):
        encode(tmp_path / "parts", autoencoder, Interrupted(broken=17), flip=True)
    done = json.loads((tmp_path / "parts/latents.json").read_text())["done"]
    assert done in (8, 16)  # the next round is read ahead
    with pytest.raises(ValueError, match=rf"{done} of {NUMBER} images are encoded"):
        data.create(f"latents:{tmp_path}/parts")
    encode(tmp_path / "parts", autoencoder, Interrupted(first=done), flip=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    # Done is done: no image is read again, and nothing is written.
    encode(tmp_path / "parts", autoencoder, Interrupted(first=NUMBER), flip=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_one_device_and_eight_agree(place, tmp_path, monkeypatch):
    autoencoder = serving.load_autoencoder(place / "autoencoder")
    assert jax.device_count() == 8
    one = parallel.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda: one)
    encode(tmp_path, autoencoder)
    alone, shared = (np.load(p / "moments.npy") for p in (tmp_path, place / "encoded"))
    np.testing.assert_allclose(alone, shared[:NUMBER], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(place):
    """A run of two steps on the latents."""
    arguments = ["--config.train.steps=2", "--config.train.sample_every=2"]
    assert run("train", place / "run", *latents_of(place), *arguments) == 0
    return place / "run"


def test_trains_on_latents_and_shows_images(trained, place):
    config = load_config(trained)
    source = data.create(f"latents:{place}/encoded")
    assert config.data.scale == source.scale and config.data.encoded_by == source.encoded_by
    assert config.data.shape == (4, 4, 2)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["loss"])
    with Image.open(next((trained / "samples").glob("*.png"))) as preview:
        assert preview.size == (4 * 40, 4 * 40) and preview.mode == "RGB"


def test_samples_are_decoded_latents(trained, place):
    config = load_config(trained)
    autoencoder = serving.load_autoencoder(place / "autoencoder")
    experiment = build(config, open_data=False, autoencoder=autoencoder)
    mesh = parallel.sampling_mesh()
    state = restore_for_sampling(trained, train.state_shapes(experiment, mesh))
    labels = np.arange(8, dtype=np.int32) % 2
    drawn = sampling.draw(experiment, state, number=8, labels=labels)

    @jax.jit
    def expected(state):
        request = sampling.Request(jnp.arange(8), labels)
        latents = experiment.system.sample(state, jax.random.key(0), request).images
        network = autoencoder.network.clone(scale=config.data.scale)
        variables = {"params": autoencoder.params}
        return data.to_uint8(network.apply(variables, latents, method="from_latent"))

    assert drawn.images.shape == (8, 8, 8, 3)
    difference = drawn.images.astype(int) - np.asarray(expected(state), int)
    assert np.abs(difference).max() <= 1


def test_a_run_does_not_go_on_with_latents_of_another(trained, place, capsys):
    """Even if they lie where its own did."""
    record, before = place / "encoded/latents.json", load_config(trained)
    text = record.read_text()
    other = serving.load_autoencoder(place / "other").digest
    record.write_text(text.replace(before.data.encoded_by, other))
    try:
        arguments = ["--config.train.steps=2", f"--config.data.autoencoder={place}/other"]
        assert run("train", trained, *latents_of(place), *arguments) == 2
    finally:
        record.write_text(text)
    assert f"data.encoded_by={before.data.encoded_by!r} (now {other!r})" in capsys.readouterr().err
    assert load_config(trained) == before


MISTAKES = {
    "drawn with another autoencoder": (
        "sample",
        ["--workdir={place}/run", "--config.data.autoencoder={place}/other"],
        "config.data.autoencoder='{place}/other' is autoencoder",
    ),
    "drawn without one": (
        "sample",
        ["--workdir={place}/run", "--config.data.autoencoder="],
        "--config.data.autoencoder=WORKDIR",
    ),
    "trained without one": (
        "train",
        ["{latents}", "--workdir={place}/new", "--config.data.autoencoder="],
        "they were encoded by {place}/autoencoder",
    ),
    "a threshold": (
        "sample",
        ["--workdir={place}/run", "--config.sample.threshold=static"],
        "config.sample.threshold='static', but the data are latents",
    ),
    "a likelihood": (
        "evaluate",
        ["--workdir={place}/run", "--config.evaluate.likelihood=ode"],
        "latents have no bits",
    ),
    "mirrored latents": (
        "train",
        ["{latents}", "--workdir={place}/new", "--config.data.flip"],
        "config.data.flip=True, but the data are latents",
    ),
    "the training set for a network": (
        "sample",
        ["{latents}", "--workdir={place}/new", "--config.network=empirical"],
        "are latents, and images are needed here",
    ),
    "encoded by another": (
        "encode",
        ["{images}", "--workdir={place}/encoded", "--config.data.autoencoder={place}/other"],
        "holds latents of another autoencoder",
    ),
    "other images": (
        "encode",
        ["{images}", "--workdir={place}/encoded", "--config.data.options.length=30"],
        "holds latents of other images",
    ),
    "an image that does not divide": (
        "encode",
        ["{images}", "--workdir={place}/new", "--config.data.options.size=9"],
        "of a size divisible by 2",
    ),
    "latents encoded": (
        "encode",
        ["{latents}", "--workdir={place}/new"],
        "are latents already",
    ),
    "a run of something else": (
        "encode",
        ["{images}", "--workdir={place}/new", "--config.data.autoencoder={place}/run"],
        "holds a run of system 'diffusion', not of 'autoencoder'",
    ),
    "images for latents": (
        "train",
        ["{images}", "--workdir={place}/new"],
        "are images: encode them",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(mistake, place, trained, capsys):
    mode, arguments, expected = MISTAKES[mistake]
    given = {
        "{latents}": latents_of(place),
        "{images}": [
            f"--config={IMAGES}",
            f"--config.data.options.length={NUMBER}",
            f"--config.data.autoencoder={place}/autoencoder",
        ],
    }
    words = ["main.py", f"--mode={mode}"]
    for argument in arguments:
        words += given.get(argument, [argument.replace("{place}", str(place))])
    before = contents(place / "encoded")
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "LABELS" not in line]
    assert len(lines) == 1 and expected.replace("{place}", str(place)) in lines[0], lines
    assert contents(place / "encoded") == before and not (place / "new").exists()
