"""A published checkpoint becomes a run: from a file to a sample grid in two commands."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from diffjax import (
    checkpoint,
    configuration,
    convert,
    evaluation,
    experiment,
    parallel,
    prediction,
    serving,
    train,
)
from diffjax.schedules import VE, Discrete
from diffjax.workdir import load_config

ROOT = pathlib.Path(__file__).parent.parent
main = runpy.run_path(str(ROOT / "main.py"))["main"]

# The smallest network of each family, and what its tensors do not tell.
UNET = dict(num_res_blocks=1, channel_mult=(1,), attention_resolutions=())
CASES = {
    "adm": dict(
        image_size=4, in_channels=1, model_channels=32, out_channels=2, num_heads=2, **UNET
    ),
    "ddpm": dict(
        image_size=4, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), channels=1
    ),
    "dit": dict(
        input_size=4,
        in_channels=1,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        learn_sigma=False,
    ),
}
TELL = {"adm": "image_size=4 num_heads=2", "ddpm": "image_size=4", "dit": "num_heads=2"}


def weights(family, **case):
    """A state dict of a network of random weights."""
    case = CASES[family] | case
    published = convert.published(family, **case)
    inputs = [np.zeros(published.input_shape, np.float32), 0.0]
    inputs += [np.zeros(1, int)] if published.module.num_classes else []
    tree = jax.eval_shape(published.module.init, jax.random.key(0), *inputs)
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: 0.1 * draw(leaf.shape, np.float32), tree)
    return convert.to_torch(family, params, **case)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of each family."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family in CASES:
        np.savez(root / f"{family}.npz", **weights(family))
    return root


def run(mode, workdir, *arguments) -> int:
    return main(["main.py", f"--mode={mode}", f"--workdir={workdir}", *arguments])


def arguments(files, family):
    return [
        f"--checkpoint={files / family}.npz",
        f"--family={family}",
        f"--architecture={TELL[family]}",
        "--config.schedule.options.steps=50",
        "--config.sample.calls=2",
        "--config.sample.number=5",
    ]


@pytest.mark.parametrize("family", CASES)
def test_two_commands_to_a_sample_grid(family, files, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run("convert", workdir, *arguments(files, family)) == 0
    assert "converted" in capsys.readouterr().out
    assert run("sample", workdir) == 0
    assert len(list((workdir / "samples").glob("*.png"))) == 1
    config = load_config(workdir)
    assert config.data.shape == (4, 4, 1) and config.sample.calls == 2
    assert config.data.conditional == (family == "dit")

    # The weights in the workdir are those of the file.
    built = experiment.build(config, open_data=False)
    shapes = train.state_shapes(built, parallel.make_mesh(devices=jax.devices()[:1]))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore_latest(shapes)  # all of it, so training may go on
    with np.load(files / f"{family}.npz") as stored:
        _, variables = convert.from_torch(family, stored, **CASES[family])
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    assert int(state.step) == 0


def test_scored_on_data_that_are_named_later(files, tmp_path, monkeypatch, capsys):
    np.savez(
        tmp_path / "data.npz",
        images=np.zeros((16, 4, 4, 1), np.uint8),
        labels=np.arange(16) % 2,
    )
    assert run("convert", tmp_path / "run", *arguments(files, "adm")) == 0
    assert run("evaluate", tmp_path / "run") == 2
    assert "config.data.source is empty" in capsys.readouterr().err
    got = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *each: got.append(each))
    source = f"--config.data.source=arrays:{tmp_path}/data.npz"
    assert run("evaluate", tmp_path / "run", source) == 0
    [(built, state, _)] = got
    assert len(built.source) > 0 and int(state.step) == 0


def test_settings_are_the_authors(files, tmp_path):
    """Those of the published checkpoints, as far as a config can say them."""
    shapes = json.loads((ROOT / "tests/data/reference/adm/iddpm_cifar10.json").read_text())
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in shapes["tensors"].items()}
    published = convert.published("adm", **convert.infer("adm", tensors))
    assert published.settings["schedule.name"] == "discrete_cosine"
    assert published.settings["schedule.options"] == dict(steps=4000)
    assert published.module.time_scale == 0.25
    assert convert.published("ddpm", image_size=256).settings["sample.options"] == dict(
        variance="small"
    )


def test_a_config_file_says_how_to_draw(files, tmp_path):
    config = configuration.load(ROOT / "configs/digits/ddpm.py")
    given = [f"--checkpoint={files}/ddpm.npz", "--family=ddpm", "--architecture=image_size=4"]
    path = f"--config={ROOT}/configs/digits/ddpm.py"
    assert run("convert", tmp_path, *given, path, "--config.data.source=") == 0
    stored = load_config(tmp_path)
    assert stored.schedule == config.schedule and stored.sample.calls == config.sample.calls
    assert stored.model.ch_mult == (1,) and stored.sample.ema == config.sample.ema


def test_a_run_is_not_overwritten(files, tmp_path, capsys):
    assert run("convert", tmp_path, *arguments(files, "ddpm")) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run("convert", tmp_path, *arguments(files, "ddpm")) == 2
    assert "holds a run: give another --workdir" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def spoiled(tensors, family):
    """Checkpoints that are wrong, each with the arguments to convert it and what is to be said."""
    first = next(iter(tensors))
    nan = tensors | {first: np.full_like(tensors[first], np.nan)}
    missing = {name: each for name, each in tensors.items() if name != first}
    tell = f"--architecture={TELL[family]}"
    return {
        "weights not finite": (nan, [tell], f"{first} holds numbers that are not finite"),
        "missing tensor": (missing, [tell], f"lacks the network's tensors: {first}"),
        "left over": (tensors | {"extra": tensors[first]}, [tell], "more than", "extra"),
        "size not told": (tensors, [], "give image_size"),
        "unknown argument": (tensors, ["--architecture=image_sise=4"], "image_sise"),
        "unreadable argument": (tensors, ["--architecture=4"], "write name=value"),
        "another schedule": (tensors, [tell, "--config.schedule.name=x"], "schedule.name"),
        "other images": (
            tensors,
            [tell, "--config.data.source=digits"],
            "config.data.shape is (4, 4, 1), but the data 'digits' have (8, 8, 1)",
        ),
    }


SPOILED = spoiled({"a": np.zeros(1)}, "ddpm")


@pytest.mark.parametrize("mistake", SPOILED)
def test_a_spoiled_checkpoint_is_one_line(mistake, files, tmp_path, capsys):
    with np.load(files / "ddpm.npz") as stored:
        tensors, given, *expected = spoiled(dict(stored), "ddpm")[mistake]
    np.savez(tmp_path / "model.npz", **tensors)
    given = [f"--checkpoint={tmp_path}/model.npz", "--family=ddpm", *given]
    assert run("convert", tmp_path / "run", *given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(text in error for text in expected), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        (
            "adm",
            ["--family=ddpm"],
            "no tensors of family 'ddpm': the checkpoint is of family 'adm'",
        ),
        ("adm", ["--family=gan"], "unknown family 'gan'; there are adm, ddpm, dit"),
        ("adm", [], "--mode convert needs --family, one of adm, ddpm, dit"),
        ("dit", ["--family=dit", "--architecture=num_heads=2 num_classes=7"], "(4, 16)"),
        ("dit", ["--family=dit"], "no published DiT is 16 wide: give num_heads"),
    ],
)
def test_a_checkpoint_of_something_else(family, given, message, files, tmp_path, capsys):
    assert run("convert", tmp_path / "run", f"--checkpoint={files}/{family}.npz", *given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "run").exists()


def zeros_of(family, path, *inputs, low_res=None, **case):
    """Writes a checkpoint with every weight zero; ``inputs`` follow the images."""
    published = convert.published(family, **case)
    x = np.zeros(published.input_shape, np.float32)
    told = {} if low_res is None else {"low_res": low_res}
    tree = jax.eval_shape(published.module.init, jax.random.key(0), x, *inputs, **told)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree)
    np.savez(path, **convert.to_torch(family, zeros, **case))


def test_a_classifier_guides(tmp_path, capsys):
    """Converted like the rest, and then named by whom it guides."""
    case = CASES["adm"] | dict(out_channels=3, pool="adaptive")
    zeros_of("adm", tmp_path / "model.npz", 0.0, **case)
    given = [f"--checkpoint={tmp_path}/model.npz", "--family=adm", f"--architecture={TELL['adm']}"]
    assert run("convert", tmp_path / "run", *given) == 0
    assert f"--config.sample.classifier={tmp_path}/run" in capsys.readouterr().out
    classifier = serving.load_classifier(tmp_path / "run")
    assert classifier.num_classes == 3 and classifier.shape == (4, 4, 1)
    told = classifier.log_probabilities(np.zeros((2, 4, 4, 1), np.float32), 0.5)
    np.testing.assert_allclose(told, -np.log(3), rtol=1e-6)


def test_an_upsampler_enlarges_what_another_run_drew(tmp_path, capsys):
    case, small = CASES["adm"] | dict(super_resolution=True), np.zeros((1, 2, 2, 1))
    zeros_of("adm", tmp_path / "model.npz", 0.0, low_res=small, **case)
    given = [f"--checkpoint={tmp_path}/model.npz", "--family=adm"]
    given += [f"--architecture={TELL['adm']} in_channels=1 small_size=2", "--config.sample.calls=2"]
    assert run("convert", tmp_path / "run", *given) == 0
    assert "--config.sample.low_res=FILE" in capsys.readouterr().out
    assert load_config(tmp_path / "run").data.low_res == 2
    np.savez(tmp_path / "small.npz", arr_0=np.zeros((5, 2, 2, 1), np.uint8))
    wanted = [f"--config.sample.low_res={tmp_path}/small.npz", "--config.sample.number=5"]
    assert run("sample", tmp_path / "run", *wanted) == 0
    assert "5 samples at 2 network evaluations each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "side"), [(dict(large_size=256, small_size=64), 64), (dict(large_size=512), 128)]
)
def test_what_the_published_upsamplers_enlarge(flags, side):
    assert convert.published("adm", **flags).settings["data.low_res"] == side


def test_what_draws_nothing_by_itself(tmp_path, capsys):
    zeros_of("inception", tmp_path / "model.npz")
    given = [f"--checkpoint={tmp_path}/model.npz", "--family=inception"]
    assert run("convert", tmp_path / "run", *given) == 2
    assert "draws no images by itself" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Told an index of a table of noise levels.
INDEXED = dict(
    image_size=4,
    num_channels=1,
    nf=8,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(2,),
    embedding_type="positional",
    scale_by_sigma=True,
)
INPUTS = np.zeros((1, 4, 4, 1), np.float32), 1.0
SCORE_NETWORKS = {
    "ncsnpp": dict(
        image_size=4,
        num_channels=1,
        nf=8,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=(2,),
        embedding_type="fourier",
        centered=False,
        scale_by_sigma=True,
    ),
    "uvit": dict(img_size=4, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2),
}


@pytest.mark.parametrize("family", SCORE_NETWORKS)
def test_networks_of_continuous_time_become_runs(family, tmp_path):
    """Their processes and samplers go with them."""
    case = SCORE_NETWORKS[family]
    published = convert.published(family, **case)
    tree = jax.eval_shape(published.module.init, jax.random.key(0), *INPUTS)
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: 0.1 * draw(leaf.shape, np.float32), tree)
    np.savez(tmp_path / "model.npz", **convert.to_torch(family, params, **case))
    told = [f"{k}={v}".replace(" ", "").replace("(", "").replace(")", "") for k, v in case.items()]
    options = [f"--checkpoint={tmp_path / 'model.npz'}", f"--family={family}"]
    options += [f"--architecture={' '.join(told)}", "--config.sample.calls=3"]
    assert run("convert", tmp_path / "run", *options, "--config.sample.number=2") == 0
    assert run("sample", tmp_path / "run") == 0
    config = load_config(tmp_path / "run")
    assert config.schedule.name == {"ncsnpp": "ve", "uvit": "vp_linear"}[family]


def test_a_score_of_images_from_zero_to_one_is_the_noise_of_ours():
    """``u = (x + 1) / 2`` has half the noise, and its score is ``-eps`` over that."""
    published = convert.published("ncsnpp", **SCORE_NETWORKS["ncsnpp"])
    tree = jax.eval_shape(published.module.init, jax.random.key(0), *INPUTS)
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape, np.float32), tree)
    x, noise = draw((2, 4, 4, 1)).astype(np.float32), np.float32(3.0)
    t = np.log(noise / 0.02) / np.log(100 / 0.02)

    @jax.jit
    def both(params):
        run = prediction.network_predict(
            lambda x, label: published.in_runs.apply(params, x, label),
            VE(0.02, 100.0),
            prediction.parametrization(published.settings["prediction.parametrization"]),
        )
        return run(x, t).eps, published.module.apply(params, (x + 1) / 2, noise / 2)

    eps, score = both(params)
    np.testing.assert_allclose(eps, -noise / 2 * score, rtol=1e-4, atol=1e-4)
    assert published.settings["schedule.options"] == dict(sigma_min=0.02, sigma_max=100.0)


def test_latents_are_drawn_through_a_converted_autoencoder(tmp_path, capsys):
    case = dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        sample_size=8,
    )
    published = convert.published("vae", **case)
    tree = jax.eval_shape(
        published.module.init, jax.random.key(0), np.zeros(published.input_shape, np.float32)
    )
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape, np.float32), tree)
    np.savez(tmp_path / "vae.npz", **convert.to_torch("vae", params, **case))
    given = [f"--checkpoint={tmp_path}/vae.npz", "--family=vae"]
    tell = "--architecture=norm_num_groups=2 sample_size=8"
    assert run("convert", tmp_path / "vae", *given, tell) == 0
    name = f"--config.data.autoencoder={tmp_path}/vae"
    assert name in capsys.readouterr().out
    autoencoder = serving.load_autoencoder(tmp_path / "vae")
    assert autoencoder.network == published.module and autoencoder.scale == 0.18215
    jax.tree.map(np.testing.assert_array_equal, autoencoder.params, params["params"])

    np.savez(tmp_path / "dit.npz", **weights("dit", in_channels=4, learn_sigma=True))
    assert run("convert", tmp_path / "run", *arguments(tmp_path, "dit")) == 0
    assert "--config.data.autoencoder=WORKDIR" in capsys.readouterr().out
    config = load_config(tmp_path / "run")
    assert config.data.scale == 0.18215 and config.sample.guidance_channels == 3
    assert run("sample", tmp_path / "run") == 2
    assert "--config.data.autoencoder=WORKDIR" in capsys.readouterr().err
    assert run("sample", tmp_path / "run", name, "--config.sample.guidance=1.5") == 0
    with np.load(next((tmp_path / "run/samples").glob("*.npz"))) as file:
        assert file["arr_0"].shape == (5, 8, 8, 3) and file["arr_0"].std() > 0


def test_the_chain_of_the_huge_uvit_is_counted_from_1(tmp_path):
    case = dict(
        img_size=4, patch_size=2, in_chans=4, embed_dim=16, depth=2, num_heads=2, conv=False
    )
    zeros_of("uvit", tmp_path / "uvit.npz", 0.0, **case)
    given = [f"--checkpoint={tmp_path}/uvit.npz", "--family=uvit", "--architecture=num_heads=2"]
    assert run("convert", tmp_path / "run", *given) == 0
    config = load_config(tmp_path / "run")
    assert config.schedule.name == "discrete_scaled_linear" and config.model.time_offset == 1
    # What a run tells its network of the last of 1000 steps is what the authors tell theirs.
    draw = np.random.default_rng(0).standard_normal
    theirs = convert.published("uvit", **case).module
    ours = convert.published("uvit", **case).in_runs
    x = draw((1, 4, 4, 4))
    tree = jax.eval_shape(theirs.init, jax.random.key(0), x, 0.0)
    params = jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape), tree)
    index = prediction.EPS.label(Discrete.scaled_linear(), 1.0)
    np.testing.assert_array_equal(ours.apply(params, x, index), theirs.apply(params, x, 1000.0))


def test_a_process_that_no_config_can_name(tmp_path, capsys):
    """That of networks of an exploding variance that are told an index."""
    zeros_of("ncsnpp", tmp_path / "model.npz", 0.0, **INDEXED)
    given = [f"--checkpoint={tmp_path}/model.npz", "--family=ncsnpp"]
    tell = "--architecture=" + " ".join(f"{k}={v}" for k, v in INDEXED.items())
    assert run("convert", tmp_path / "run", *given, tell.replace(", ", ",")) == 2
    assert "a process that no config can name" in capsys.readouterr().err
