"""What a run reports: ``metrics.jsonl`` and lines always, a bar and TensorBoard when possible.

Only the first host reports; on the others every method does nothing.
"""

import contextlib
import json
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import jax
import numpy as np
from tqdm import tqdm

from diffjax.data import images

try:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError:
    RecordWriter = None

__all__ = ["METRICS_FILE", "Logger", "drop_after", "read_metrics", "say"]

METRICS_FILE = "metrics.jsonl"


def say(text: str) -> None:
    """One line on the terminal of the first host, above the bar if there is one."""
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()


class Logger:
    """Reports one run; a context manager.

    A line every ``every`` steps holds the means of the metrics since the line before, and the rate,
    which counts training alone: neither compilation nor pauses.

    Args:
        workdir: The run's directory. Lines of ``metrics.jsonl`` after ``start`` are dropped: they
            belong to steps that were lost and are made again.
        start: Step that the run goes on from.
        total: Step that it ends at.
        every: Steps between lines.
        terminal: Where the bar is drawn, if it is one.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start: int,
        total: int,
        every: int,
        terminal: TextIO | None = None,
    ):
        self._active = jax.process_index() == 0
        self._workdir = pathlib.Path(workdir)
        self._start, self._total, self._every = start, total, every
        self._terminal = sys.stderr if terminal is None else terminal
        self._stack = contextlib.ExitStack()
        self._sums: dict[str, float] = {}
        self._steps = 0
        if self._active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            path = self._workdir / METRICS_FILE
            drop_after(path, start)
            self._file = self._stack.enter_context(path.open("a"))
            self._events = RecordWriter and self._stack.enter_context(
                _Events(self._workdir / "tensorboard", start)
            )

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Starts the clock and the bar: everything is compiled."""
        self._since = time.perf_counter()
        self._bar = self._stack.enter_context(
            tqdm(
                initial=self._start,
                total=self._total,
                unit="step",
                file=self._terminal,
                disable=not (self._active and self._terminal.isatty()),
                dynamic_ncols=True,
                leave=False,
            )
        )

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one step, in order; every ``every``-th and the last makes a line."""
        if not self._active:
            return
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._steps += 1
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}", refresh=False)
        self._bar.update()
        if step % self._every == 0 or step == self._total:
            self._line(step)

    def _line(self, step: int) -> None:
        now = time.perf_counter()
        means = {name: total / self._steps for name, total in self._sums.items()}
        rate = self._steps / (now - self._since)
        self._since, self._sums, self._steps = now, {}, 0
        means = {"loss": means.pop("loss"), **means}  # what is looked for stands first
        values = {**means, "steps_per_second": rate}
        # JSON has no NaN; a loss is always finite here, but other metrics need not be.
        record = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        if self._events:
            self._events.scalars(step, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        left = tqdm.format_interval((self._total - step) / rate)
        say(f"step {step}/{self._total}  {shown}  {rate:.3g} steps/s  {left} left")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            lost = time.perf_counter() - began
            self._since += lost
            if not self._bar.disable:
                self._bar.start_t += lost
                self._bar.last_print_t += lost

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes ``<name>/<step>.png`` in the run's directory.

        Args:
            step: The step that it shows.
            name: Of the directory.
            image: uint8 ``(height, width, 1 or 3)``.
        """
        if self._active:
            path = self._workdir / name / f"{step:08d}.png"
            images.save_png(path, image)
            if self._events:
                self._events.png(step, name, image.shape, path.read_bytes())


class _Events:
    """An event file of TensorBoard. Written record by record, for its own writer loads TensorFlow.

    Args:
        directory: Where the file goes.
        start: TensorBoard forgets what earlier files say about later steps.
    """

    def __init__(self, directory: pathlib.Path, start: int):
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = (directory / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(0, file_version="brain.Event:2")
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(start + 1, session_log=began)

    def __enter__(self) -> "_Events":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def _write(self, step: int, **content) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def _summary(self, step: int, values) -> None:
        self._write(step, summary=summary_pb2.Summary(value=values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        value = summary_pb2.Summary.Value
        self._summary(step, [value(tag=tag, simple_value=v) for tag, v in values.items()])

    def png(self, step: int, tag: str, shape: tuple[int, ...], encoded: bytes) -> None:
        height, width, channels = shape
        image = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encoded
        )
        self._summary(step, [summary_pb2.Summary.Value(tag=tag, image=image)])


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``, a line torn by a crash left out; [] without a file."""
    path = pathlib.Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def drop_after(path: str | os.PathLike, step: int) -> None:
    """Removes the records after a step, and torn ones, in one atomic replacement of the file."""
    path = pathlib.Path(path)
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    if path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)
