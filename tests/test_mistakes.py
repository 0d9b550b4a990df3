"""Mistakes a user can make: each ends in one clear line and exit code 2, and changes nothing."""

import pathlib
import pickle
import runpy
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffjax import configuration, experiment, workdir

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "tests/data/digits.py")
QUICK = f"{DIGITS}:quick"
LATENTS = f"{ROOT}/configs/imagenet256/dit.py:small"
main = runpy.run_path(str(ROOT / "main.py"))["main"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with everything that can be wrong on a disk."""
    root = tmp_path_factory.mktemp("mistakes")
    config = experiment.build(configuration.load(QUICK)).config
    workdir.save_config(config, root / "run")
    (root / "damaged").mkdir()
    (root / "damaged/config.json").write_text('{"seed": 0,')
    (root / "file").write_text("no directory")
    (root / "empty").mkdir()

    source = pathlib.Path(DIGITS).read_text()
    (root / "syntax.py").write_text("import ml_collections\ndef get_config(:\n")
    (root / "fails.py").write_text("def get_config():\n    return {}['depth']\n")
    (root / "nothing.py").write_text("CONFIG = 3\n")
    (root / "number.py").write_text("def get_config():\n    return 3\n")
    (root / "no_argument.py").write_text("def get_config():\n    return 3\n")
    (root / "lacks.py").write_text(source.replace("flip=False,", ""))
    (root / "extra.py").write_text(source.replace("seed = 0", "sede = 0"))
    (root / "wrong_type.py").write_text(source.replace("steps=1500", "steps='many'"))

    (root / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "images/a.png")
    (root / "images/b.png").write_bytes(b"not a picture")
    (root / "broken").mkdir()
    (root / "broken/a.png").write_bytes(b"not a picture")
    np.savez(root / "labels.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.array([0, -3]))
    with zipfile.ZipFile(root / "code.pt", "w") as file:
        file.writestr("code/data.pkl", pickle.dumps({"weight": pathlib.Path.touch}))
    np.savez(root / "unlabelled.npz", images=np.zeros((16, 8, 8, 1), np.uint8))
    return root


def fresh(*overrides, config=QUICK, mode="train"):
    """Arguments of a new run, with overrides ``name=value``."""
    flags = [f"--config.{override}" for override in overrides]
    return ["--mode", mode, "--config", config, "--workdir", "{place}/new", *flags]


def stored(*overrides, mode="sample", workdir="{place}/run"):
    """Arguments for the run in a workdir, with overrides ``name=value``."""
    return ["--mode", mode, "--workdir", workdir, *(f"--config.{o}" for o in overrides)]


def converted(*flags):
    """Arguments that convert a checkpoint."""
    return ["--mode", "convert", "--workdir", "{place}/new", *flags]


# What is typed, and what the line must say.
MISTAKES = {
    # the command line
    "no mode": (["--workdir", "{place}/run"], "--mode", "train, sample"),
    "unknown mode": (["--mode", "trian"], "trian", "train"),
    "no workdir": (["--mode", "train", "--config", QUICK], "--workdir"),
    "no config": (["--mode", "dry_run"], "--config"),
    "unknown flag": (
        ["--mode", "train", "--wrkdir", "x"],
        "'--wrkdir'",
        "did you mean '--workdir'",
    ),
    "flag without value": (["--mode", "train", "--workdir"], "--workdir"),
    "stray word": ([*fresh(), "fast"], "'fast'", "--name=value"),
    "flag of two kinds": ([*fresh(), "--distributed=perhaps"], "distributed", "perhaps"),
    # config files
    "missing file": (fresh(config="{place}/syntx.py"), "syntx.py", "did you mean", "syntax.py"),
    "missing directory": (fresh(config="nowhere/default.py"), "no config file"),
    "directory": (fresh(config=str(ROOT / "configs/digits")), "no config file", "default.py"),
    "syntax": (fresh(config="{place}/syntax.py"), "syntax.py: line 2: invalid syntax"),
    "failing file": (fresh(config="{place}/fails.py"), "fails.py: line 2: KeyError: 'depth'"),
    "no get_config": (fresh(config="{place}/nothing.py"), "define get_config"),
    "no ConfigDict": (fresh(config="{place}/number.py"), "returned int"),
    "no argument": (fresh(config="{place}/no_argument.py:quick"), "takes 0 positional arguments"),
    "unknown variant": (fresh(config=f"{DIGITS}:quik"), "no variant 'quik'", "quick"),
    "missing field": (fresh(config="{place}/lacks.py"), "config.data.flip is missing"),
    "unknown field in file": (fresh(config="{place}/extra.py"), "config.sede", "config.seed"),
    "wrong type in file": (fresh(config="{place}/wrong_type.py"), "train.steps", "'many'"),
    # overrides
    "unknown field": (
        fresh("train.stps=3"),
        "config.train.stps",
        "did you mean config.train.steps",
    ),
    "unknown section": (fresh("trian.steps=3"), "config.trian.steps", "config.train.steps"),
    "below a number": (fresh("train.steps.first=3"), "config.train.steps.first"),
    "word for a number": (
        fresh("train.steps=many"),
        "train.steps must be an integer",
        "got 'many'",
    ),
    "fraction for a count": (fresh("train.steps=1.5"), "train.steps", "an integer of at least 1"),
    "word for a flag": (
        fresh("data.flip=perhaps"),
        "data.flip must be True or False; got 'perhaps'",
    ),
    "value missing": (fresh("train.steps"), "train.steps"),
    "negative steps": (fresh("train.steps=-5"), "config.train.steps", "-5"),
    "negative seed": (fresh("seed=-1"), "config.seed", "-1"),
    "no batch": (fresh("train.batch_size=0"), "config.train.batch_size", "0"),
    "rate above one": (fresh("optimizer.ema_rates=(1.5,)"), "ema_rates", "between 0 and 1"),
    "infinite rate": (fresh("optimizer.learning_rate=inf"), "learning_rate", "inf"),
    "half an interval": (fresh("sample.guidance_interval=(0.1,)"), "guidance_interval", "t_low"),
    "overlapping overrides": (
        fresh("sample.options.eta=1", "sample.options={}"),
        "sample.options",
    ),
    # names
    "unknown system": (fresh("system=difusion"), "config.system", "did you mean 'diffusion'"),
    "unknown source": (fresh("data.source=digit"), "config.data", "digit", "'digits'"),
    "source without path": (fresh("data.source=folder"), "config.data", "folder:PATH"),
    "unknown source option": (fresh("data.options.sise=3"), "config.data", "'sise'"),
    "unknown network": (fresh("network=ditt"), "config.network", "did you mean 'dit'"),
    "unknown schedule": (fresh("schedule.name=cosin"), "schedule.name", "did you mean 'cosine'"),
    "unknown parametrization": (fresh("prediction.parametrization=e"), "eps, x0, v"),
    "unknown target": (fresh("loss.target=x"), "config.loss.target", "x0"),
    "unknown weighting": (fresh("loss.weighting=snrr"), "loss.weighting", "did you mean 'snr'"),
    "unknown times": (fresh("loss.times=unifrm"), "loss.times", "did you mean 'uniform'"),
    "unknown optimiser": (fresh("optimizer.name=adan_w"), "optimizer.name", "adamw"),
    "unknown decay": (fresh("optimizer.decay=cos"), "optimizer.decay", "'cosine'"),
    "unknown solver": (fresh("sample.solver=ddmi"), "sample.solver", "did you mean 'ddim'"),
    "unknown grid": (fresh("sample.grid=karas"), "sample.grid", "did you mean 'karras'"),
    "unknown sampler": (fresh("sampler=solvr"), "config.sampler", "did you mean 'solver'"),
    "unknown threshold": (fresh("sample.threshold=dinamic"), "sample.threshold", "'dynamic'"),
    "unknown likelihood": (
        stored("evaluate.likelihood=nll", mode="evaluate"),
        "config.evaluate.likelihood must be one of '', 'ode', 'bound'; got 'nll'",
    ),
    "likelihood's bound without a chain": (
        stored("evaluate.likelihood=bound", mode="evaluate"),
        "config.evaluate.likelihood: 'bound' is of a discrete chain: use 'ode'",
    ),
    "likelihood of the training set": (
        fresh("network=empirical", "evaluate.likelihood=ode", mode="evaluate"),
        "config.evaluate.likelihood='ode', but the training set itself has no density",
    ),
    "no images to measure": (
        stored("evaluate.likelihood_number=0", mode="evaluate"),
        "config.evaluate.likelihood_number must be an integer of at least 1; got 0",
    ),
    "unknown dtype": (fresh("model.dtype=float23"), "model.dtype", "float32"),
    "unknown parallel mode": (fresh("parallel.mode=pmapp"), "parallel.mode", "'pmap'"),
    # options
    "options of another network": (fresh("network=dit"), "DiT has no option", "patch_size"),
    "unknown model option": (fresh("model.widht=3"), "'widht'", "did you mean 'width'"),
    "inferred model option": (fresh("model.num_classes=3"), "config.model", "'num_classes'"),
    "unknown solver option": (
        fresh("sample.solver=ddim", "sample.options.etta=1.0"),
        "sample.options",
        "did you mean 'eta'",
    ),
    "unknown option of a preset": (
        fresh("sample.solver=dpm_solver_pp_3m", "sample.options.ordr=2"),
        "config.sample.options: multistep has no option 'ordr'; did you mean 'order'",
    ),
    "solver option of another kind": (
        fresh("sample.solver=ddim", "sample.options.eta=much"),
        "config.sample.options.eta must be a number; got 'much'",
    ),
    "solver option missing": (fresh("sample.solver=heun_stochastic"), "sample.options", "gamma"),
    "unknown schedule option": (fresh("schedule.options.t_mn=1.0"), "did you mean 't_min'"),
    "unknown times option": (fresh("loss.times_options.sdt=1.0"), "did you mean 'std'"),
    "unknown optimiser option": (fresh("optimizer.options.b3=0.1"), "optimizer.options", "'b3'"),
    "weighting option without weighting": (
        fresh("loss.weighting=", "loss.weighting_options.gamma=1.0"),
        "weighting_options",
    ),
    # what does not fit together
    "image not divisible": (
        fresh("model.ch_mult=(1,1,1,1,1)", config=f"{DIGITS}:unet,quick"),
        "config.model",
        "divisible by 16",
        "8x8",
    ),
    "patch not divisible": (
        fresh("model.patch_size=3", config=f"{DIGITS}:dit,quick"),
        "config.model",
        "divisible by its patch size 3",
    ),
    "no heads": (fresh("model.num_heads=0", config=f"{DIGITS}:dit,quick"), "network 'dit'"),
    "discrete times without a chain": (
        fresh("loss.times=discrete", "loss.times_options={}"),
        "config.loss",
        "Discrete",
    ),
    "noise that does not grow": (fresh("schedule.options.t_min=90.0"), "config.schedule", "grow"),
    "chain without steps": (
        fresh("schedule.name=discrete_linear", "schedule.options.steps=0"),
        "config.schedule",
        "betas",
    ),
    "weighted noise": (fresh("loss.target=eps"), "loss.weighting", "'x0'"),
    "unknown augmentation": (
        fresh("loss.augmentation=edn"),
        "loss.augmentation",
        "did you mean 'edm'",
    ),
    "options of no augmentation": (
        fresh("loss.augmentation_options.zoom=0.1"),
        "loss.augmentation_options",
        "config.loss.augmentation",
    ),
    "augmentation that cannot be": (
        fresh("loss.augmentation=edm", "loss.augmentation_options.border=white"),
        "loss.augmentation_options",
        "'reflect' or 'black'",
    ),
    "budget": (fresh("sample.solver=heun"), "config.sample", "6 calls cannot be made", "5 or 7"),
    "learned variance without one": (
        fresh("sample.solver=ancestral", "sample.options.variance=learned"),
        "config.sample",
        "learned variances",
    ),
    "loss of the bound without a chain": (
        fresh("loss.target=hybrid", "loss.weighting=", "loss.weighting_options={}"),
        "loss.target='hybrid'",
        "config.loss.times to 'discrete'",
    ),
    "weighted bound": (fresh("loss.target=hybrid"), "loss.target='hybrid'", "no weighting"),
    "bound without a variance": (
        fresh("loss.target=hybrid", config=f"{ROOT}/configs/digits/ddpm.py:quick"),
        "set config.prediction.learned_variance",
    ),
    "optimiser that needs more": (
        fresh("optimizer.name=lbfgs", "optimizer.options={}"),
        "config.optimizer",
        "lbfgs",
    ),
    "guidance without classes": (
        fresh("data.conditional=false", "sample.guidance=2.0"),
        "sample.guidance",
        "unconditional",
    ),
    "guidance without the null label": (
        fresh("loss.label_dropout=0", "evaluate.guidance=2.0"),
        "evaluate.guidance",
        "label_dropout",
    ),
    "empty interval": (fresh("sample.guidance_interval=(2.0,1.0)"), "guidance_interval", "below"),
    "average not kept": (fresh("sample.ema=0.5"), "config.sample.ema", "(0.99, 0.999)"),
    "label out of range": (fresh("sample.labels=3,12"), "sample.labels", "no class 12", "0..9"),
    "label that is no number": (fresh("sample.labels=three"), "sample.labels", "'cycle'"),
    "labels without classes": (
        fresh("data.conditional=false", "sample.labels=3"),
        "sample.labels",
        "unconditional",
    ),
    "batch and devices": (fresh("train.batch_size=20"), "train.batch_size=20", "multiple of 8"),
    "batch and microbatches": (fresh("train.microbatches=3"), "microbatches", "multiple of 24"),
    "fsdp and devices": (fresh("parallel.fsdp=3"), "parallel.fsdp=3", "8 devices"),
    "fsdp under pmap": (fresh("parallel.mode=pmap", "parallel.fsdp=2"), "pmap", "set it to 1"),
    "training the training set": (fresh("network=empirical"), "no parameters to train"),
    # data
    "missing folder": (fresh("data.source=folder:{place}/nowhere"), "no such directory"),
    "folder without images": (fresh("data.source=folder:{place}/empty"), "no images"),
    "unreadable image": (fresh("data.source=folder:{place}/broken"), "cannot read", "a.png"),
    "file that is no npz": (fresh("data.source=arrays:{place}/file"), "not a readable .npz"),
    "labels below zero": (fresh("data.source=arrays:{place}/labels.npz"), "labels must be"),
    "conditional without labels": (
        fresh("data.source=arrays:{place}/unlabelled.npz"),
        "conditional",
        "labels",
    ),
    "statistics without labels": (
        fresh("data.source=arrays:{place}/unlabelled.npz", "data.conditional=false", mode="stats"),
        "labels",
    ),
    # latents
    "missing autoencoder": (
        fresh("data.autoencoder={place}/nowhere"),
        "config.data.autoencoder: workdir {place}/nowhere does not exist",
    ),
    "autoencoder of another system": (
        fresh("data.autoencoder={place}/run", mode="encode"),
        "holds a run of system 'diffusion', not of 'autoencoder'",
    ),
    "encoding without an autoencoder": (fresh(mode="encode"), "config.data.autoencoder is empty"),
    "encoding without a config": (stored(mode="encode"), "--mode encode needs --config"),
    "missing latents": (fresh("data.source=latents:{place}/empty"), "--mode encode writes it"),
    "scale of images": (fresh("data.scale=2.0"), "the data 'digits' are images"),
    "threshold of latents": (
        fresh("sample.threshold=static", config=LATENTS, mode="dry_run"),
        "config.sample.threshold='static', but the data are latents",
    ),
    "unknown error of an autoencoder": (
        fresh("loss.target=l3", config=f"{ROOT}/configs/patches/autoencoder.py:quick"),
        "config.loss.target",
        "l1, l2",
    ),
    "image that an autoencoder cannot halve": (
        fresh("data.options.size=9", config=f"{ROOT}/configs/patches/autoencoder.py:quick"),
        "config.model",
        "of a size divisible by 2",
    ),
    # checkpoints
    "no checkpoint": (converted("--family=dit"), "--checkpoint", ".safetensors"),
    "no family": (converted("--checkpoint={place}/code.pt"), "--family", "adm, ddpm, dit"),
    "missing checkpoint": (
        converted("--checkpoint={place}/nowhere.pt", "--family=dit"),
        "no checkpoint file",
    ),
    "file that is no checkpoint": (
        converted("--checkpoint={place}/images/b.png", "--family=dit"),
        "cannot read a file that ends in '.png'",
    ),
    "checkpoint with code": (
        converted("--checkpoint={place}/code.pt", "--family=dit"),
        "code.pt: it asks for ",
        "nothing of it was run",
    ),
    "checkpoint of another family": (
        converted("--checkpoint={place}/labels.npz", "--family=dit"),
        "labels.npz: these are no tensors of family 'dit'",
    ),
    # workdirs
    "workdir without a run": (stored(workdir="{place}/empty"), "holds no run", "--mode train"),
    "missing workdir": (stored(workdir="{place}/nowhere"), "does not exist"),
    "workdir that is a file": (
        ["--mode", "train", "--config", QUICK, "--workdir", "{place}/file"],
        "is a file",
    ),
    "workdir below a file": (
        ["--mode", "train", "--config", QUICK, "--workdir", "{place}/file/run"],
        "{place}/file is no writable directory",
    ),
    "damaged config": (stored(workdir="{place}/damaged"), "config.json: the file is damaged"),
    "another experiment": (
        ["--mode", "train", "--config", DIGITS, "--workdir", "{place}/run"],
        "another experiment",
        "model.width=64 (now 512)",
        "another --workdir",
    ),
    "another network for a run": (stored("model.width=32"), "model.width=64 (now 32)"),
    "run without a checkpoint": (stored(), "no checkpoint", "train first"),
    "reference without Inception": (
        stored("evaluate.reference=fid.npz", mode="evaluate"),
        "config.evaluate.reference",
        "pt_inception-2015-12-05",
    ),
    "Inception weights that are not there": (
        stored("evaluate.inception=weights.pth", mode="evaluate"),
        "checkpoint",
    ),
    "unknown convention": (
        stored("evaluate.convention=fid", mode="evaluate"),
        "config.evaluate.convention",
        "'tensorflow'",
    ),
    "evaluation without a checkpoint": (stored(mode="evaluate"), "no checkpoint"),
    "longer run under a decay": (
        stored("train.steps=500", mode="train"),
        "train.steps=20 (now 500)",
    ),
}


def typed(arguments, place) -> list[str]:
    return [argument.replace("{place}", str(place)) for argument in arguments]


def snapshot(root: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(mistake, place, capsys):
    arguments, *expected = MISTAKES[mistake]
    before = snapshot(place)
    code = main(["main.py", *typed(arguments, place)])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "LABELS IGNORED" not in line]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("diffjax: "), error
    for text in expected:
        assert text.replace("{place}", str(place)) in lines[0], lines[0]
    assert len(lines[0]) < 600
    assert snapshot(place) == before


def test_there_are_many():
    assert len(MISTAKES) >= 40


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "main.py", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_mistake_in_a_process_of_its_own(tmp_path):
    config = "configs/digits/default.py"
    done = command("--mode=train", "--config", config, f"--workdir={tmp_path}/x", "--config.sed=1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("diffjax: there is no config.sed; did you mean config.seed?")
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_traceback_on_request(place):
    with pytest.raises(ValueError, match=r"no config\.sed;"):
        main(["main.py", *typed(fresh("sed=1"), place), "--traceback"])


def test_bugs_keep_their_traceback(monkeypatch, place):
    def broken(*arguments, **keywords):
        raise RuntimeError("a bug")

    monkeypatch.setattr(experiment, "build", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["main.py", *typed(fresh(mode="dry_run"), place)])
