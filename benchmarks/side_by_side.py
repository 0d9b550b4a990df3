"""What the benchmarks share: alternating measurements, ratios, and tables that name the machine."""

import argparse
import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from diffjax.process import reuse_memory

__all__ = [
    "OURS",
    "ROOT",
    "THREADS",
    "facts",
    "interleave",
    "parser",
    "ratio",
    "timing_flags",
    "train_run",
]

ROOT = pathlib.Path(__file__).resolve().parent.parent
THREADS = os.cpu_count() or 1  # what XLA takes, and so what PyTorch is given
# Devices of our side, where both forms are timed.
OURS = {"one device": 1, "a device a core": THREADS}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parser(description: str) -> argparse.ArgumentParser:
    """Flags that every benchmark has; also sets the process up as ``main.py`` does."""
    reuse_memory()  # as main.py does; the other side gains from it too
    made = argparse.ArgumentParser(description=description.partition("\n\n")[0])
    made.add_argument("--quick", action="store_true", help="seconds, to see that it runs")
    return made


def train_run(workdir: os.PathLike, config: str, *overrides: str) -> None:
    """Trains by the command line, as a user does; a run that is finished stays as it is."""
    command = [sys.executable, "main.py", "--mode", "train", "--config", config, *overrides]
    subprocess.run([*command, "--workdir", os.path.abspath(workdir)], cwd=ROOT, check=True)


def timing_flags(made: argparse.ArgumentParser, cases: Iterable[str]) -> None:
    """Adds the flags of benchmarks that call :func:`interleave`."""
    made.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases))
    made.add_argument("--repeats", type=int, help="rounds of measurements; each case has its own")
    made.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of all cores together, for a machine that others use at the same time",
    )


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    seconds: float = 0.0,
    clock: str = "wall",
) -> dict[str, np.ndarray]:
    """Times the calls in turn, round after round, so that all meet the same weather.

    Rounds start with another call each time. In a round a call is made once to warm up, and then
    until ``seconds`` have passed, at least once; calls must wait for their own result.

    Args:
        calls: What to time, by name.
        repeats: Rounds.
        seconds: Least time that each call is measured for in a round.
        clock: One of ``CLOCKS``.

    Returns:
        Seconds a call, ``(repeats,)`` by name.
    """
    now = CLOCKS[clock]
    names = list(calls)
    times = {name: [] for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            calls[name]()
            began, count = now(), 0
            while not count or now() - began < seconds:
                calls[name]()
                count += 1
            times[name].append((now() - began) / count)
    return {name: np.asarray(values) for name, values in times.items()}


def ratio(times: np.ndarray, base: np.ndarray) -> str:
    """Median of the ratio within each round, and its quartiles."""
    low, middle, high = np.quantile(times / base, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def header(names: Sequence[str]) -> str:
    """The head of a Markdown table; its first column is text, the others are numbers."""
    return f"{row(names)}\n{row(['---', *['---:'] * (len(names) - 1)])}"


def row(cells: Iterable[object]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def facts(*packages: str) -> str:
    """The machine, how busy it is, and the versions of the packages, in two lines."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", *packages)]
    load = os.getloadavg()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {math.ceil(memory)} GiB, {platform.system()}; "
        f"JAX on {jax.devices()[0].device_kind}; load average now {load:.1f}\n"
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
