"""Scores beside those of real data, reference statistics, and the demo's last words."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import configuration, data, demo, evaluation, metrics, reference, sampling
from diffjax.experiment import build
from diffjax.metrics.probe import ClassifierProbe, train_classifier

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"{ROOT}/configs/digits/default.py:mlp,quick"
SMALL = ("model.width=8", "model.depth=1", "sample.calls=2", "sample.guidance=1.0")


REAL = 300


def digits(split):
    """As many digits as are compared with here."""
    return data.in_memory(data.create("digits", split=split), REAL)


def make(*overrides):
    arguments = [f"--config.{override}" for override in (*SMALL, *overrides)]
    return build(configuration.override(configuration.load(QUICK), arguments))


def untrained(experiment, scale=0.5):
    """A state with parameters at random: the initial ones make every sample the same."""
    example = {"image": np.zeros((1, *experiment.shape), np.uint8), "label": np.zeros(1, np.int32)}
    state = jax.jit(experiment.system.init)(jax.random.key(0), example)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + scale * random.normal(size=leaf.shape), state.params)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return state.replace(params=params, ema=dict.fromkeys(state.ema, params))


@pytest.fixture(scope="module")
def quick_judges():
    """Few real images, and classifiers that are good enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(train_classifier, steps=120)
        patch.setattr(reference, "train_classifier", quick)
        patch.setattr(evaluation, "train_classifier", quick)
        patch.setattr(evaluation, "MAX_REAL", REAL)
        yield


@pytest.fixture(scope="module")
def judged(tmp_path_factory, quick_judges):
    """A workdir that holds the judge of the digits."""
    workdir = tmp_path_factory.mktemp("judged")
    reference.probe(digits("train"), workdir)
    return workdir


def evaluated(experiment, workdir, judged=None, scale=0.5):
    """The report, as returned and as in the file, which must agree."""
    if judged:
        shutil.copy(judged / reference.PROBE_FILE, workdir)
    report = evaluation.evaluate(experiment, untrained(experiment, scale), workdir)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (workdir / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse) == report
    return report


def size(path):
    with Image.open(path) as picture:
        return picture.size


DISTANCES = {"n", "energy", "sliced_wasserstein"}
OF_FEATURES = {
    *("frechet", "frechet_bias", "kid", "precision", "recall", "density", "coverage"),
}


def test_the_held_out_images_themselves_get_ideal_scores(tmp_path, monkeypatch, capsys, judged):
    held_out = digits("test")

    def draw(experiment, state, **asked):
        assert asked["number"] == len(held_out)
        return sampling.Drawn(held_out.images, held_out.labels, 7)

    monkeypatch.setattr(sampling, "draw", draw)
    experiment = make(f"evaluate.number={len(held_out)}", "sample.guidance=3.0")
    report = evaluated(experiment, tmp_path, judged)
    ideal, other, floor = (
        report["distances"][name]
        for name in ("samples_to_held_out", "samples_to_train", "train_to_held_out")
    )
    for part in (ideal, other, floor):
        assert part.keys() == DISTANCES | OF_FEATURES
    assert ideal["frechet"] < 1e-6 < floor["frechet"]
    assert ideal["sliced_wasserstein"] < 1e-12
    assert ideal["precision"] == ideal["recall"] == ideal["coverage"] == 1
    # Without bias, a set's distance to itself is below zero: each point is there twice.
    assert -0.03 < ideal["energy"] < 0 and -0.3 < ideal["kid"] < 0
    # To the training half they are what held-out images are, seen from the other side.
    for name in ("frechet", "energy", "sliced_wasserstein"):
        np.testing.assert_allclose(other[name], floor[name], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        (other["precision"], other["recall"]), (floor["recall"], floor["precision"])
    )
    near = report["nearest_training_image"]
    assert near["samples"] == near["held_out"] and near["quantiles"] == [0.05, 0.25, 0.5, 0.75]
    score = report["inception_score"]
    np.testing.assert_allclose(score["samples"], score["held_out"], rtol=1e-9)
    assert 6 < score["samples"] <= 10
    accuracy = report["label_accuracy"]
    assert accuracy.keys() == {"guidance 1", "guidance 3", "real, held-out"}
    assert len(set(accuracy.values())) == 1 and accuracy["guidance 1"] > 0.8
    trained_on = report["classifier_trained_on"]
    assert trained_on["samples"] > 0.9 and trained_on["train"] == accuracy["real, held-out"]
    assert report["real"] == {"train": REAL, "held_out": REAL}
    assert (report["nfe"], report["samples"], report["step"]) == (7, REAL, 0)
    said = capsys.readouterr().out
    assert f"{REAL} samples of step 0, 7 network evaluations each, guidance 1" in said
    assert said.count("Frechet distance of features") == 1 and str(tmp_path) in said


def test_an_untrained_conditional_system(tmp_path, judged):
    """What is drawn is noise, and every score says so."""
    experiment = make(f"evaluate.number={REAL}", "evaluate.guidance=2.0")
    report = evaluated(experiment, tmp_path, judged)
    noise, floor = (
        report["distances"][name] for name in ("samples_to_held_out", "train_to_held_out")
    )
    assert noise["n"] == [REAL, REAL] and report["nfe"] == 4 and report["guidance"] == 2.0
    for name in ("frechet", "kid", "energy", "sliced_wasserstein"):
        assert noise[name] > 5 * max(floor[name], 0)
    assert noise["coverage"] < 0.5 < floor["coverage"]
    near = report["nearest_training_image"]
    assert near["samples"][0] > near["held_out"][3]
    assert 1 <= report["inception_score"]["samples"] < report["inception_score"]["held_out"]
    assert report["label_accuracy"].keys() == {"guidance 2", "guidance 1", "real, held-out"}
    assert report["label_accuracy"]["guidance 2"] < 0.5
    # A hundred real beside a hundred drawn, ten a row.
    assert size(tmp_path / "real_and_drawn.png") == (400 + 16 + 400, 400)


def test_a_collapsed_network_is_scored_too(tmp_path, judged):
    """All samples alike: a classifier has nothing to learn from them, all else is measured."""
    silent = make("evaluate.number=20", "prediction.parametrization=x0")
    report = evaluated(silent, tmp_path, judged, scale=0.0)
    assert report["inception_score"]["samples"] == pytest.approx(1)
    ideal, collapsed = (
        report["distances"][name] for name in ("train_to_held_out", "samples_to_held_out")
    )
    assert collapsed["recall"] == 0 and collapsed["frechet"] > 5 * ideal["frechet"]
    assert "label_accuracy" in report and "classifier_trained_on" not in report


@pytest.mark.parametrize(("number", "columns", "rows"), [(8, 8, 1), (30, 20, 1), (45, 20, 2)])
def test_the_nearest_training_image_stands_below_its_sample(
    tmp_path, monkeypatch, unlabelled, number, columns, rows
):
    experiment = make(
        f"data.source={unlabelled}", "data.conditional=False", f"evaluate.number={number}"
    )
    train = data.in_memory(experiment.source).images
    chosen = train[np.random.default_rng(0).integers(len(train), size=number)]
    monkeypatch.setattr(sampling, "draw", lambda *_, **__: sampling.Drawn(chosen, None, 1))
    report = evaluated(experiment, tmp_path)
    assert report["nearest_training_image"]["samples"] == [0, 0, 0, 0]
    with Image.open(tmp_path / "nearest.png") as picture:
        sheet = np.asarray(picture).reshape(rows, 2, 40, 40 * columns)
    expected = data.contact_sheet(chosen[: rows * columns], columns).reshape(rows, 40, -1)
    np.testing.assert_array_equal(sheet[:, 0], expected)
    np.testing.assert_array_equal(sheet[:, 1], expected)
    assert size(tmp_path / "real_and_drawn.png") == (816, 40 * -(-min(number, 20) // 10))


def test_an_unconditional_system_on_labelled_data(tmp_path, judged):
    experiment = make("data.conditional=False", "evaluate.number=20")
    report = evaluated(experiment, tmp_path, judged)
    assert report["distances"]["samples_to_held_out"].keys() == DISTANCES | OF_FEATURES
    assert "inception_score" in report and report["features"].startswith("probe-")
    assert not {"label_accuracy", "classifier_trained_on"} & report.keys()


@pytest.fixture
def unlabelled(tmp_path):
    """A folder with a training and a test split, and no classes."""
    images = data.create("digits", split="all").images
    for split, part in (("train", images[:30]), ("test", images[30:50])):
        for i, image in enumerate(part):
            data.save_png(tmp_path / "data" / split / f"{i:02d}.png", image)
    return f"folder:{tmp_path / 'data'}"


def test_data_without_labels(tmp_path, unlabelled):
    experiment = make(f"data.source={unlabelled}", "data.conditional=False", "evaluate.number=10")
    report = evaluated(experiment, tmp_path)
    assert report["features"] == "none: the data have no labels"
    for part in report["distances"].values():
        assert part.keys() == DISTANCES
    assert not {"inception_score", "label_accuracy", "classifier_trained_on"} & report.keys()
    assert not (tmp_path / reference.PROBE_FILE).exists()
    assert "Frechet" not in evaluation.table(report)
    assert "energy distance of pixels" in evaluation.table(report)


def test_colour_pictures(tmp_path, quick_judges):
    patches = ("data.source=patches", "data.options.size=8", "data.options.length=64")
    experiment = make(*patches, "evaluate.number=64")
    report = evaluated(experiment, tmp_path)
    assert report["distances"]["samples_to_held_out"]["n"] == [64, 64]
    assert report["real"] == {"train": 64, "held_out": 64}
    assert report["nfe"] == 2 and report["label_accuracy"].keys() == {
        "guidance 1",
        "real, held-out",
    }
    with Image.open(tmp_path / "real_and_drawn.png") as picture:
        assert picture.mode == "RGB" and picture.size == (816, 280)


def test_what_is_scored_is_not_what_mode_sample_draws(tmp_path, unlabelled, monkeypatch):
    experiment = make(f"data.source={unlabelled}", "data.conditional=False", "evaluate.number=8")
    state, drawn, draw = untrained(experiment), [], sampling.draw

    def watched(*arguments, **named):
        drawn.append(draw(*arguments, **named).images)
        return sampling.Drawn(drawn[-1], None, 1)

    monkeypatch.setattr(sampling, "draw", watched)
    evaluation.evaluate(experiment, state, tmp_path)
    evaluation.evaluate(experiment, state, tmp_path)
    looked_at = draw(experiment, state, number=8, labels=None, seed=0).images
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != looked_at).mean() > 0.5


def test_likelihood_beside_the_scores(tmp_path, unlabelled, capsys):
    chain = ("schedule.name=discrete_linear", "schedule.options={}", "schedule.options.steps=5")
    experiment = make(
        f"data.source={unlabelled}",
        "data.conditional=False",
        "evaluate.number=8",
        "evaluate.likelihood=bound",
        *chain,
    )
    report = evaluated(experiment, tmp_path)
    assert report["likelihood"]["nfe"] == 5 and report["likelihood"]["levels"] == 256
    assert "given the label" not in report["likelihood"]["convention"]
    said = capsys.readouterr().out
    assert f"bits per dimension: {report['likelihood']['bits_per_dim']:.3f} +- " in said
    assert "uniform over 256 levels 8.000" in said


def test_inception_splits_are_for_many(monkeypatch, tmp_path, judged):
    asked = []

    def score(logits, *, splits):
        asked.append((len(logits), splits))
        return metrics.InceptionScore(1.0, 0.0)

    monkeypatch.setattr(metrics, "inception_score", score)
    monkeypatch.setattr(
        sampling,
        "draw",
        lambda *_, number, **__: sampling.Drawn(
            np.random.default_rng(0).integers(256, size=(number, 8, 8, 1), dtype=np.uint8), None, 1
        ),
    )
    evaluated(make("data.conditional=False", "evaluate.number=20"), tmp_path, judged)
    assert asked == [(20, 1), (REAL, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("evaluate.number=5",), "at least 6 images of a kind, but config.evaluate.number is 5"),
        (
            ("data.source=arrays:{arrays}", "data.conditional=False"),
            "scores compare samples with images held out, but arrays:.* has no split 'test'",
        ),
        (
            ("data.source={folder}", "data.conditional=False"),
            "at least 6 images of a kind, but the images held out are 3",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(tmp_path, monkeypatch, settings, message):
    images = data.create("digits", split="all").images
    np.savez(tmp_path / "few.npz", images=images[:10])
    for split, number in (("train", 8), ("test", 3)):
        for i in range(number):
            data.save_png(tmp_path / "few" / split / f"{i}.png", images[i])
    places = {"arrays": tmp_path / "few.npz", "folder": f"folder:{tmp_path / 'few'}"}
    experiment = make(*(setting.format(**places) for setting in settings))
    monkeypatch.setattr(sampling, "draw", None)
    monkeypatch.setattr(reference, "train_classifier", None)
    with pytest.raises(ValueError, match=message) as caught:
        evaluation.evaluate(experiment, None, tmp_path)
    assert "\n" not in str(caught.value)


# Reference statistics.


def test_statistics_of_data_and_the_judge_kept_with_them(tmp_path, quick_judges):
    source = data.create("patches", split="train", size=8, length=64)
    path = reference.write(source, tmp_path)
    judge = ClassifierProbe.load(tmp_path / reference.PROBE_FILE)
    images = np.asarray(data.to_float(data.in_memory(source).images))
    features = judge.features(images)
    stored = metrics.load_reference(path, convention=judge.convention)
    np.testing.assert_allclose(stored.pool.mean, features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored.pool.covariance, np.cov(features.T), rtol=1e-4, atol=1e-6)
    # A second call has the same judge, and so the same figures.
    first = path.read_bytes()
    assert reference.write(source, tmp_path).read_bytes() == first
    assert reference.probe(data.in_memory(source), tmp_path).convention == judge.convention


def test_statistics_need_labels_and_memory(tmp_path, monkeypatch):
    plain = data.ArraySource(np.zeros((8, 4, 4, 1), np.uint8), name="plain")
    with pytest.raises(ValueError, match="'plain' have no classes to tell apart"):
        reference.write(plain, tmp_path)
    monkeypatch.setattr(reference, "MAX_BYTES", 2**30)
    huge = data.create("patches", split="train", size=128, length=6000)
    with pytest.raises(ValueError, match=r"6000 images of \(128, 128, 3\), do not fit in 1 GiB"):
        reference.write(huge, tmp_path)
    assert not list(tmp_path.iterdir())


# The demo.


def test_training_curve(tmp_path):
    rows = [{"step": s, "loss": 1 / s, "grad_norm": 1.0} for s in range(1, 20)]
    lines = [json.dumps(row) for row in rows] + ['{"step": 20, "lo']  # torn by a crash
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    path = demo.training_curve(tmp_path)
    assert path == tmp_path / "training.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[:2] == (420, 720)
    # The curve is there, in matplotlib's first colour.
    assert (np.abs(pixels - (31, 119, 180)).sum(-1) < 30).sum() > 300


def test_the_demos_last_words(tmp_path, capsys, unlabelled):
    experiment = make(
        f"data.source={unlabelled}",
        "data.conditional=False",
        "evaluate.number=8",
        "sample.number=4",
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    demo.show(experiment, untrained(experiment), tmp_path)
    said = capsys.readouterr().out
    for word in said.split():
        if word.startswith(str(tmp_path)):
            assert pathlib.Path(word).exists()
    for name in (
        "overview.png",
        "real_and_drawn.png",
        "nearest.png",
        "training.png",
        "evaluation.json",
    ):
        assert str(tmp_path / name) in said
    report = json.loads((tmp_path / "evaluation.json").read_text())
    median = report["nearest_training_image"]["samples"][2]
    assert f"The median sample is {median:.3f} from the nearest training image, no nearer" in said


def test_what_the_figures_mean(tmp_path, monkeypatch, capsys):
    experiment = make("sample.guidance=2.0")
    near = {"samples": [0, 0, 0.3, 0], "held_out": [0, 0, 0.4, 0]}
    report = {
        "distances": {
            "samples_to_held_out": {"frechet": 3.0},
            "train_to_held_out": {"frechet": 2.0},
        },
        "nearest_training_image": near,
        "nearest_held_out_image": {"samples": [0, 0, 0.35, 0]},
        "label_accuracy": {"guidance 1": 0.5, "guidance 2": 0.75, "real, held-out": 0.99},
    }
    monkeypatch.setattr(sampling, "sample", lambda *_: tmp_path / "samples.npz")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: report)
    monkeypatch.setattr(demo, "overview", lambda *_: tmp_path / "overview.png")
    demo.show(experiment, None, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "Samples are 1.50 times as far from the held-out images as real images are" in said
    assert "0.300 from the nearest training image, 25 % nearer than real images" in said
    assert "0.350 from the nearest of those" in said
    assert "With guidance 1, 50.0 % of the samples are of the class asked for." in said
    assert "With guidance 2, 75.0 %" in said and "99" not in said
    assert "samples.png samples, guidance 2" in said
