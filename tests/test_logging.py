import io
import json
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffjax import logging
from diffjax.logging import Logger, drop_after, read_metrics


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(logging.time, "perf_counter", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def report(log, steps, **more):
    for step in steps:
        log.add(step, {"loss": float(step), "grad_norm": 1.0, **more})


def without_rates(path):
    return [
        {name: value for name, value in record.items() if name != "steps_per_second"}
        for record in read_metrics(path / "metrics.jsonl")
    ]


def test_lines_hold_means_and_the_last_step_always_makes_one(tmp_path, capsys):
    with Logger(tmp_path, start=0, total=7, every=3) as log:
        log.begin()
        report(log, range(1, 8))
    assert without_rates(tmp_path) == [
        {"step": 3, "loss": 2.0, "grad_norm": 1.0},
        {"step": 6, "loss": 5.0, "grad_norm": 1.0},
        {"step": 7, "loss": 7.0, "grad_norm": 1.0},
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 3/7", "loss 2"],
        ["step 6/7", "loss 5"],
        ["step 7/7", "loss 7"],
    ]


def test_rate_counts_training_alone(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Logger(tmp_path, start=0, total=100, every=10) as log:
        clock.passes(1000)  # compiling
        log.begin()
        clock.passes(2)
        report(log, range(1, 11))
        with log.pause():
            clock.passes(500)  # drawing pictures
        clock.passes(4)
        report(log, range(11, 21))
    rates = [record["steps_per_second"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == [5.0, 2.5]
    assert "2.5 steps/s  00:32 left" in capsys.readouterr().out


def test_file_is_json_also_when_a_metric_is_not_a_number(tmp_path):
    with Logger(tmp_path, start=0, total=1, every=1) as log:
        log.begin()
        report(log, [1], accuracy=float("nan"))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["accuracy"] is None and record["loss"] == 1.0


def test_steps_made_again_are_not_told_twice(tmp_path):
    """A run that had reached step 6 goes on from step 4."""
    with Logger(tmp_path, start=0, total=8, every=2) as log:
        log.begin()
        report(log, range(1, 7), lost=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    with Logger(tmp_path, start=4, total=8, every=2) as log:
        log.begin()
        report(log, range(5, 9))
    found = [(record["step"], "lost" in record) for record in without_rates(tmp_path)]
    assert found == [(2, True), (4, True), (6, False), (8, False)]


def test_dropping_keeps_the_lines_before_as_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_after(path, 3)
    assert not path.exists()
    lines = [json.dumps({"step": step, "loss": 0.1 * step}) for step in range(1, 6)]
    path.write_text("\n".join(lines) + "\n")
    drop_after(path, 3)
    assert path.read_text().splitlines() == lines[:3]
    drop_after(path, 0)
    assert path.read_text() == ""


def test_bar_is_drawn_on_a_terminal_only(tmp_path):
    drawn = {}
    for terminal in (Terminal(), io.StringIO()):
        with Logger(tmp_path, start=10, total=50, every=100, terminal=terminal) as log:
            log.begin()
            for step in range(11, 41):
                report(log, [step])
                time.sleep(0.005)
        drawn[type(terminal)] = terminal.getvalue()
    assert drawn[io.StringIO] == ""
    bar = drawn[Terminal]
    assert "| 10/50 [00:00<" in bar  # goes on where the run went on
    assert "step/s, loss " in bar


def test_pauses_do_not_slow_the_bar(tmp_path):
    terminal = Terminal()
    with Logger(tmp_path, start=0, total=100, every=100, terminal=terminal) as log:
        log.begin()
        report(log, range(1, 11))
        with log.pause():
            time.sleep(1.2)
        time.sleep(0.2)  # the bar is drawn ten times a second at most
        report(log, [11])
    assert "[00:01<" not in terminal.getvalue()
    assert "11/100" in terminal.getvalue()


def test_only_the_first_host_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    terminal = Terminal()
    with Logger(tmp_path / "run", start=0, total=2, every=1, terminal=terminal) as log:
        logging.say("hello")
        log.begin()
        report(log, [1, 2])
        with log.pause():
            log.picture(2, "samples", np.zeros((4, 4, 1), np.uint8))
    assert not (tmp_path / "run").exists()
    assert (capsys.readouterr().out, terminal.getvalue()) == ("", "")


def test_pictures_are_files(tmp_path):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    with Logger(tmp_path, start=0, total=2, every=1) as log:
        log.picture(20, "samples", image)
    with Image.open(tmp_path / "samples" / "00000020.png") as found:
        np.testing.assert_array_equal(np.asarray(found), image)


def test_tensorboard_shows_each_step_once_after_a_restart(tmp_path):
    for start, end, loss in ((0, 6, 1.0), (4, 8, 2.0)):
        with Logger(tmp_path, start=start, total=8, every=2) as log:
            log.begin()
            for step in range(start + 1, end + 1):
                log.add(step, {"loss": loss})
            log.picture(end, "samples", np.zeros((4, 6, 1), np.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (2, 1.0),
        (4, 1.0),
        (6, 2.0),
        (8, 2.0),
    ]
    assert [(image.step, image.width, image.height) for image in events.Images("samples")] == [
        (8, 6, 4)
    ]


def test_without_tensorboard_the_rest_works(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "RecordWriter", None)
    with Logger(tmp_path, start=0, total=1, every=1) as log:
        log.begin()
        report(log, [1])
        log.picture(1, "samples", np.zeros((4, 4, 1), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples"]
