"""FID and its kin: streamed, kept, gone on with, and against every published form of reference."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from diffjax import (
    configuration,
    data,
    inception_features,
    inception_scores,
    metrics,
    parallel,
    sampling,
)
from diffjax.evaluation import evaluation_seed
from diffjax.experiment import build
from diffjax.inception_features import Gathered, Judge, gather, load_judge, write_reference
from diffjax.metrics import FeatureStatistics, Reference
from diffjax.metrics.inception import Features

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"{ROOT}/configs/digits/default.py:mlp,quick"
SMALL = ("model.width=8", "model.depth=1", "sample.calls=2", "sample.batch_size=24")
NUMBER = 40


class Network:
    """Stands for the Inception network: a few random features, and a record of what it saw."""

    convention = "tensorflow"

    def __init__(self, fails_after=np.inf):
        draw = np.random.default_rng(0).standard_normal
        self.weights = [draw((64, size)) / 8 for size in (6, 5, 7)]
        self.seen, self.fails_after = 0, fails_after

    def __call__(self, images):
        if self.seen + len(images) > self.fails_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        pixels = images[..., 0].reshape(len(images), -1) / 128.0
        return Features(*(np.tanh(pixels @ w).astype(np.float32) for w in self.weights))


@pytest.fixture(scope="module")
def compiled_once():
    """The program that draws is the same in all these tests."""
    compile_draw, made = sampling.compile_draw, []

    def once(*arguments):
        if not made:
            made.append(compile_draw(*arguments))
        return made[0]

    return once


@pytest.fixture(autouse=True)
def small(monkeypatch, compiled_once):
    monkeypatch.setattr(sampling, "compile_draw", compiled_once)
    monkeypatch.setattr(inception_features, "ROUND", 16)
    monkeypatch.setattr(inception_scores, "FEATURES", 6)


@pytest.fixture
def network(monkeypatch):
    """The network that a run loads, and what it was asked to be."""
    made = Network()

    def load(path, convention, mesh):
        assert path == "weights.pth"
        made.convention = convention
        return Judge(made, "weights")

    monkeypatch.setattr(inception_scores, "load_judge", load)
    return made


@pytest.fixture(scope="module")
def trained():
    """An experiment, and a state with parameters at random."""
    overrides = [f"--config.{override}" for override in SMALL]
    experiment = build(configuration.override(configuration.load(QUICK), overrides))
    example = {"image": np.zeros((1, 8, 8, 1), np.uint8), "label": np.zeros(1, np.int32)}
    state = jax.jit(experiment.system.init)(jax.random.key(0), example)
    draw = np.random.default_rng(0).standard_normal
    random = jax.tree.map(lambda leaf: leaf + 0.5 * draw(leaf.shape), state.params)
    random = jax.tree.map(np.float32, random)
    return experiment, state.replace(params=random, ema=dict.fromkeys(state.ema, random))


@pytest.fixture
def drawn(trained):
    """The samples that are scored, drawn at once."""
    experiment, state = trained
    labels = np.arange(NUMBER, dtype=np.int32) % 10
    seed = evaluation_seed(0)
    return sampling.draw(experiment, state, number=NUMBER, labels=labels, seed=seed).images


def score(trained, workdir, **settings):
    experiment, state = trained
    config = experiment.config.copy_and_resolve_references()
    config.evaluate.update({"inception": "weights.pth", "number": NUMBER, **settings})
    return inception_scores.evaluate(experiment._replace(config=config), state, workdir)


@pytest.fixture
def real():
    """Images to compare with, of three equal channels, as ADM's files have them."""
    return data.in_memory(data.create("digits", split="test")).images[:50].repeat(3, axis=-1)


@pytest.fixture
def images_file(real, tmp_path):
    metrics.save_samples(tmp_path / "real.npz", real)
    return str(tmp_path / "real.npz")


def test_scores_are_those_of_all_features_at_once(
    trained, drawn, network, real, images_file, tmp_path, capsys
):
    report = score(trained, tmp_path, reference=images_file)
    theirs, ours = Network()(real), Network()(drawn)
    want = {
        "fid40": metrics.frechet_distance(theirs.pool, ours.pool),
        "sfid40": metrics.frechet_distance(theirs.spatial, ours.spatial),
        "precision": metrics.precision_recall(theirs.pool, ours.pool).precision,
        "recall": metrics.precision_recall(theirs.pool, ours.pool).recall,
    }
    for name, value in want.items():
        np.testing.assert_allclose(report["scores"][name], value, rtol=1e-6, atol=1e-9)
    score_of_all = metrics.inception_score(ours.logits, splits=1).mean
    np.testing.assert_allclose(report["scores"]["inception_score"]["mean"], score_of_all)
    assert report["scores"]["kid"]["subset_size"] == 40
    assert (report["nfe"], report["convention"]) == (2, "tensorflow")
    assert json.loads((tmp_path / "inception_scores.json").read_text()) == report
    printed = capsys.readouterr().out
    for text in "fid40", "sfid40", "inception score", "KID x 1000", "of 50 images", "weights":
        assert text in printed


def test_nothing_is_computed_twice(trained, network, images_file, tmp_path):
    first = score(trained, tmp_path, reference=images_file)
    network.seen = 0
    assert score(trained, tmp_path, reference=images_file) == first
    assert network.seen == 0
    # A larger evaluation adds to a smaller one; the last round of that was not whole.
    score(trained, tmp_path, reference=images_file, number=48)
    assert network.seen == 16
    # Other samples are other features.
    network.seen = 0
    score(trained, tmp_path, reference=images_file, seed=1)
    assert network.seen == NUMBER


def test_an_interrupted_evaluation_goes_on(trained, network, images_file, tmp_path):
    whole = score(trained, tmp_path / "whole", reference=images_file)
    network.seen, network.fails_after = 0, 50 + 20
    with pytest.raises(KeyboardInterrupt):
        score(trained, tmp_path / "parts", reference=images_file)
    assert network.seen == 50 + 16
    network.seen, network.fails_after = 0, np.inf
    assert score(trained, tmp_path / "parts", reference=images_file) == whole
    assert network.seen == NUMBER - 16


def test_statistics_of_the_data_in_parts(trained, monkeypatch, tmp_path):
    """What ``--mode stats`` writes: of all images, with some of them, in ADM's form."""
    monkeypatch.setattr(inception_features, "ROUND", 100)
    monkeypatch.setattr(inception_features, "SAVE_EVERY", 2)
    monkeypatch.setattr(inception_features, "MAX_REAL", 30)
    source = trained[0].source
    with pytest.raises(KeyboardInterrupt):
        write_reference(source, Judge(Network(fails_after=350), "weights"), tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
    rest = Network()
    write_reference(source, Judge(rest, "weights"), tmp_path / "a.npz")
    assert rest.seen == len(source) - 200  # the third round was not kept
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

    images = data.in_memory(source).images
    found, features = metrics.load_reference(tmp_path / "a.npz"), Network()(images)
    for statistics, each in (found.pool, features.pool), (found.spatial, features.spatial):
        whole = FeatureStatistics.of(each, "tensorflow")
        np.testing.assert_allclose(statistics.mean, whole.mean, rtol=1e-9)
        np.testing.assert_allclose(statistics.covariance, whole.covariance, rtol=1e-9, atol=1e-12)
        assert (statistics.count, statistics.convention) == (len(images), "tensorflow")
    np.testing.assert_array_equal(found.images[1], images[len(images) // 30].repeat(3, axis=-1))
    assert found.images.shape == (30, 8, 8, 3)


def test_without_a_file_the_training_data_are_the_reference(trained, network, tmp_path):
    report = score(trained, tmp_path)
    path = tmp_path / "inception_reference_tensorflow.npz"
    assert report["reference"] == {"file": str(path), "n": len(trained[0].source)}
    network.seen = 0
    assert score(trained, tmp_path) == report
    assert network.seen == 0
    # Each convention has statistics and features of its own.
    assert score(trained, tmp_path, convention="clean")["convention"] == "clean"
    assert network.seen > len(trained[0].source)
    # Statistics of other data are not taken for these.
    found = metrics.load_reference(path)
    metrics.save_reference(path, Reference(found.pool, found.spatial, data_hash="other"))
    with pytest.raises(ValueError, match="other data or other weights"):
        score(trained, tmp_path)


def test_statistics_of_pytorch_fid(trained, network, real, tmp_path, capsys):
    """No sFID, KID, precision or recall, and said so; the convention is the user's to say."""
    pool = FeatureStatistics.of(Network()(real).pool, "pytorch")
    np.savez(tmp_path / "fid.npz", mu=pool.mean, sigma=pool.covariance)
    file = str(tmp_path / "fid.npz")
    with pytest.raises(ValueError, match=r"config.evaluate.reference: .* its convention; give it"):
        score(trained, tmp_path, reference=file)
    report = score(trained, tmp_path, reference=file, convention="pytorch")
    assert report["scores"].keys() == {"fid40", "inception_score"}
    assert (report["convention"], network.convention) == ("pytorch", "pytorch")
    printed = capsys.readouterr().out
    assert "of an unknown number of images" in printed
    assert "sFID needs" in printed and "KID, precision and recall need" in printed


def test_activations_of_score_sde(trained, drawn, network, real, tmp_path):
    features = Network()(real).pool
    np.savez(tmp_path / "stats.npz", pool_3=features)
    file = str(tmp_path / "stats.npz")
    found = score(trained, tmp_path, reference=file, convention="tensorflow")["scores"]
    want = metrics.precision_recall(features, Network()(drawn).pool)
    assert (found["precision"], found["recall"]) == want


def adm(pool, spatial, path):
    np.savez(
        path, mu=pool.mean, sigma=pool.covariance, mu_s=spatial.mean, sigma_s=spatial.covariance
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(convention="clean"), "config.evaluate.reference: .*'tensorflow', not 'clean'"),
        (dict(reference="missing.npz"), "config.evaluate.reference: no file missing.npz"),
        (dict(number=3), "config.evaluate.number=3: .* at least 6 samples"),
        (dict(reference="few"), "2 images are too few"),
        (dict(reference="wide"), "statistics of 9 features; the Inception network's are 6"),
    ],
)
def test_mistakes(trained, network, real, settings, message, tmp_path):
    features = Network()(real)
    pool, spatial = (FeatureStatistics.of(each, "tensorflow") for each in features[:2])
    adm(pool, spatial, tmp_path / "adm.npz")
    metrics.save_samples(tmp_path / "few.npz", real[:2])
    wide = FeatureStatistics.of(np.eye(9), "tensorflow")
    adm(wide, spatial, tmp_path / "wide.npz")
    name = settings.get("reference", "adm")
    reference = name if "." in name else str(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=message):
        score(trained, tmp_path / "new", **{**settings, "reference": reference})
    assert not (tmp_path / "new").exists()


def test_weights_that_are_none(tmp_path):
    mesh = parallel.sampling_mesh()
    missing = str(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"no file .*pt_inception-2015-12-05.*for small data"):
        load_judge(missing, "clean", mesh)
    np.savez(tmp_path / "other.npz", **{"temb.dense.0.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"config.evaluate.inception=.*npz: .*of family 'ddpm'"):
        load_judge(tmp_path / "other.npz", "clean", mesh)


def test_command_line_without_weights(tmp_path, capsys):
    """A run is told where the file comes from, before anything is computed."""
    main = runpy.run_path(str(ROOT / "main.py"))["main"]
    arguments = ["--mode", "stats", "--config", QUICK, "--workdir", str(tmp_path)]
    assert main(["main.py", *arguments, "--config.evaluate.inception=nowhere.pth"]) == 2
    assert "pt_inception-2015-12-05" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rounds_are_read_in_order(tmp_path):
    gathered = Gathered(tmp_path, 40)
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    gather(gathered, lambda part: images[part.start : part.stop], Judge(Network(), "w"), "")
    want = Network()(images)
    np.testing.assert_array_equal(gathered.all("pool"), want.pool)
    whole = FeatureStatistics.of(want.spatial, "clean")
    found = gathered.statistics("spatial", "clean")
    np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-9, atol=1e-12)
