"""The command line, from a config file to pictures."""

import functools
import json
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffjax import demo, evaluation, reference, train
from diffjax.solvers import learned
from diffjax.workdir import load_config

ROOT = pathlib.Path(__file__).parent.parent
main = runpy.run_path(str(ROOT / "main.py"))["main"]

SMALL = [
    f"--config={ROOT}/tests/data/digits.py:quick",
    "--config.model.width=8",
    "--config.model.depth=1",
    "--config.train.steps=4",
    "--config.train.batch_size=16",
    "--config.train.sample_every=0",
    "--config.sample.calls=2",
]


def run(mode, workdir, *arguments) -> int:
    return main(["main.py", f"--mode={mode}", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a short run."""
    workdir = tmp_path_factory.mktemp("run") / "new" / "directory"
    assert run("train", workdir, *SMALL) == 0
    return workdir


def test_train_keeps_the_resolved_config(trained):
    config = load_config(trained)
    assert (config.train.steps, config.model.width) == (4, 8)
    assert (config.data.shape, config.data.num_classes) == ((8, 8, 1), 10)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and np.isfinite(lines[-1]["loss"])


@pytest.mark.parametrize("arguments", [[], SMALL], ids=["stored config", "the same config"])
def test_train_again_is_finished(arguments, trained, capsys):
    before = (trained / "metrics.jsonl").read_text()
    assert run("train", trained, *arguments) == 0
    assert "finished" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_text() == before


def test_sample_needs_no_config_and_takes_overrides(trained, capsys):
    before = load_config(trained)
    overrides = ["--config.sample.number=5", "--config.sample.labels=3,7"]
    assert run("sample", trained, *overrides) == 0
    told = re.search(
        r"^5 samples at 2 network evaluations each: (.*\.npz)$", capsys.readouterr().out, re.M
    )
    with np.load(told[1]) as file:
        assert file["arr_0"].shape == (5, 8, 8, 1) and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_1"], [3, 7, 3, 7, 3])
    assert load_config(trained) == before


def test_fit_learns_a_sampler_that_a_config_can_name(trained, monkeypatch, capsys):
    quick = functools.partial(learned.fit, teacher_steps=8, flops=1.0)
    monkeypatch.setattr(learned, "fit", quick)
    assert run("fit", trained) == 0
    path = trained / "learned" / "calls2_guidance1.npz"
    chosen = ["--config.sample.solver=learned", f"--config.sample.options.path={path}"]
    assert " ".join(chosen) in capsys.readouterr().out
    assert run("sample", trained, "--config.sample.number=3", *chosen) == 0
    assert "3 samples at 2 network evaluations each" in capsys.readouterr().out
    assert run("sample", trained, "--config.sample.calls=3", *chosen) == 2
    assert "makes 2 calls, not calls=3: fit one with --mode fit" in capsys.readouterr().err
    assert run("sample", trained, chosen[0]) == 2
    assert "config.sample.options needs path" in capsys.readouterr().err


def test_sample_opens_no_data(trained, monkeypatch):
    def closed(*arguments, **keywords):
        raise AssertionError("data were opened")

    monkeypatch.setattr("diffjax.data.create", closed)
    assert run("sample", trained, "--config.sample.number=2") == 0


def test_evaluate_gets_the_trained_state(trained, monkeypatch):
    got = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments: got.append(arguments))
    assert run("evaluate", trained, "--config.evaluate.number=7") == 0
    [(experiment, state, workdir)] = got
    assert experiment.config.evaluate.number == 7 and len(experiment.source) > 0
    assert int(state.step) == 4 and workdir == str(trained)


def test_empirical_network_samples_without_training(tmp_path):
    assert run("sample", tmp_path / "new", *SMALL, "--config.network=empirical") == 0
    assert load_config(tmp_path / "new").network == "empirical"
    assert len(list((tmp_path / "new/samples").glob("*.png"))) == 1


def test_stats_writes_the_reference(tmp_path, monkeypatch, capsys):
    got = []
    monkeypatch.setattr(
        reference, "write", lambda source, workdir: got.append((source, workdir)) or "there"
    )
    assert run("stats", tmp_path / "new", *SMALL) == 0
    [(source, workdir)] = got
    assert source.name == "digits" and workdir == str(tmp_path / "new")
    assert "wrote there" in capsys.readouterr().out


def test_dry_run_makes_no_workdir(tmp_path, capsys):
    assert run("dry_run", tmp_path / "new", *SMALL, "--config.network=empirical") == 0
    assert '"steps": 4' in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_dry_run_of_a_run_in_a_process_of_its_own(trained, tmp_path):
    """Nothing in the workdir changes; compiled programs are kept in the user's cache."""
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    command = [sys.executable, str(ROOT / "main.py"), "--mode=dry_run", f"--workdir={trained}"]
    environment = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^parameters +[\d,]+$", done.stdout, re.M) and '"width": 8' in done.stdout
    assert re.search(r"^memory +[\d.]+ [KM]iB a device", done.stdout, re.M)
    assert re.search(r"^devices +1 cpu \(sharding, data=1, fsdp=1\)$", done.stdout, re.M)
    assert sorted(path.stat().st_mtime_ns for path in trained.rglob("*")) == before
    assert any((tmp_path / "cache/diffjax").rglob("jit_*"))


def test_demo_trains_and_shows(tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr(train, "train", lambda experiment, workdir: "the trained state")
    monkeypatch.setattr(demo, "show", lambda *arguments: got.append(arguments))
    assert run("demo", tmp_path / "new", *SMALL) == 0
    [(experiment, state, workdir)] = got
    assert state == "the trained state" and experiment.config.train.steps == 4
    assert (tmp_path / "new/config.json").exists() and workdir == str(tmp_path / "new")


def test_distributed_starts_before_the_devices_are_counted(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: called.append("initialize"))
    count = jax.device_count
    monkeypatch.setattr(jax, "device_count", lambda: called.append("count") or count())
    assert run("train", tmp_path, *SMALL, "--distributed", "--config.train.batch_size=12") == 2
    assert called == ["initialize", "count"]


def test_divergence_is_one_line(monkeypatch, tmp_path):
    def diverge(experiment, workdir):
        raise train.TrainingDiverged("the loss is nan at step 3")

    monkeypatch.setattr(train, "train", diverge)
    with pytest.raises(SystemExit, match="diffjax: the loss is nan at step 3"):
        run("train", tmp_path, *SMALL)


def test_interruption_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupt(experiment, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    assert run("train", tmp_path, *SMALL) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "diffjax: interrupted"


def test_help_is_complete_and_quick(capsys):
    """It imports neither JAX nor this library."""
    code = f"""
import runpy, sys
code = runpy.run_path({str(ROOT / "main.py")!r})["main"](["main.py", "--help"])
assert not {{"jax", "diffjax"}} & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in (
        "train",
        "sample",
        "evaluate",
        "stats",
        "dry_run",
        "demo",
        "--workdir",
        "--config.",
    ):
        assert word in done.stdout
    assert done.stderr == ""
