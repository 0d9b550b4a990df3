"""The training loop: resumes by itself, stops at the first bad loss, never loses a checkpoint.

Whatever interrupts a run, starting it again with the same workdir ends with the same parameters,
bit for bit: the state holds the key of all later draws, batch ``s`` is a function of seed and step,
and the compiled update is the same program. (On GPUs that takes kernels that always add in the
same order: ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``.)
"""

import collections
import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffjax import parallel, sampling, upsampling
from diffjax.checkpoint import Checkpoints
from diffjax.data import images, pipeline
from diffjax.experiment import Experiment, abstract_batch, check_devices
from diffjax.logging import Logger, say
from diffjax.state import TrainState
from diffjax.systems import Metrics
from diffjax.typing import Array, Key

__all__ = ["TrainingDiverged", "preview", "state_shapes", "train"]

# Updates the host runs ahead of the devices. Their metrics are read only when they are this old, so
# reading never holds the devices up, and no more batches than this wait in their memory.
IN_FLIGHT = 2

PREVIEW_SIZE = 64  # pictures in a grid drawn while training


class TrainingDiverged(RuntimeError):
    """The loss or the parameters stopped being finite; the message names the step."""


def state_shapes(experiment: Experiment, mesh: Mesh | None = None) -> TrainState:
    """The state of an experiment as ``ShapeDtypeStruct``, nothing computed.

    Args:
        experiment: What is trained.
        mesh: Where the state is to live, from ``parallel.make_mesh``; None leaves it open.
    """
    shapes = jax.eval_shape(experiment.system.init, jax.random.key(0), _example(experiment))
    if mesh is None:
        return shapes

    def placed(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, parallel.state_sharding(shapes, mesh))


def _example(experiment: Experiment) -> dict[str, np.ndarray]:
    shapes = abstract_batch(experiment, 1)
    return {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}


def train(experiment: Experiment, workdir: str | os.PathLike) -> TrainState:
    """Trains to ``config.train.steps``, from the newest checkpoint in the workdir if there is one.

    Writes ``checkpoints/``, ``metrics.jsonl``, ``samples/`` and, when TensorBoard is installed,
    ``tensorboard/``. On several hosts every one calls this, and the first writes.

    Args:
        experiment: From ``experiment.build``; under ``pmap`` with ``axis=parallel.AXIS``.
        workdir: Directory of the run.

    Returns:
        The final state. That of a run already finished is read and returned.

    Raises:
        TrainingDiverged: The loss is not finite. The checkpoints before are kept.
        ValueError: Devices and batch do not fit, or the workdir holds another experiment's state.
        SystemExit: SIGTERM came; the state is saved, and the exit code is 0.
        KeyboardInterrupt: SIGINT (Ctrl-C) came; the state is saved. A second one stops at once.
    """
    config = experiment.config
    settings, mode = config.train, config.parallel.mode
    mesh = parallel.make_mesh(mode, config.parallel.fsdp)
    check_devices(config, mesh.size)
    shapes = state_shapes(experiment, mesh)
    init_key, preview_key = jax.random.split(jax.random.key(config.seed))

    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_stop_signals())
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep_last=settings.keep_last, keep_every=settings.keep_every)
        )
        state = checkpoints.restore_latest(shapes)
        if state is None:
            state = _initial(experiment, init_key, shapes)
        start = int(state.step)
        if start >= settings.steps:
            say(f"finished: {workdir} holds the state of step {start}")
            return state
        log = stack.enter_context(
            Logger(workdir, start=start, total=settings.steps, every=settings.log_every)
        )
        say(_opening(experiment, state, mesh, start))

        stream = (parallel.place_batch(batch, mesh, mode) for batch in _batches(experiment, start))
        draws = settings.sample_every and experiment.system.sample is not None
        draw = preview(experiment, preview_key, mesh) if draws else None
        pending: collections.deque[tuple[int, Metrics]] = collections.deque()

        def settle(limit: int) -> None:
            """Reads the metrics of all updates but the last ``limit``, oldest first."""
            while len(pending) > limit:
                step, metrics = pending.popleft()
                values = jax.device_get(metrics)
                if not math.isfinite(values["loss"]):
                    raise _diverged(f"the loss is {values['loss']}", step, checkpoints)
                log.add(step, values)

        batch = next(stream)
        began = time.perf_counter()
        update = parallel.compile_update(experiment.system, state, batch, mesh, mode)
        say(f"compiled in {time.perf_counter() - began:.1f} s")
        log.begin()
        for step in range(start + 1, settings.steps + 1):
            state, metrics = update(state, batch)
            pending.append((step, metrics))
            settle(IN_FLIGHT)
            last, stop = step == settings.steps, stopped(step)
            picture = draws and (last or step % settings.sample_every == 0)
            save = last or stop or step % settings.checkpoint_every == 0
            if picture or save:
                settle(0)
                with log.pause():
                    if not _finite(state):
                        raise _diverged("parameters are not finite", step, checkpoints)
                    if picture:
                        log.picture(step, "samples", draw(state))
                    if save:  # last, so that a run resumed from here lacks no line and no picture
                        checkpoints.save(state)
            if stop:
                checkpoints.wait()
                say(f"stopped and saved at step {step}; start again to go on")
                raise stop
            if not last:
                batch = next(stream)
    return state


def _initial(experiment: Experiment, key: Key, shapes: TrainState) -> TrainState:
    """The state before training, made where it is to live."""
    shardings = jax.tree.map(lambda shape: shape.sharding, shapes)
    return jax.jit(experiment.system.init, out_shardings=shardings)(key, _example(experiment))


def _batches(experiment: Experiment, start: int) -> Iterator[pipeline.Batch]:
    config = experiment.config
    return pipeline.batches(
        experiment.source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        flip=config.data.flip,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _opening(experiment: Experiment, state: TrainState, mesh: Mesh, start: int) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    where = f"{mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}"
    layout = f"data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}"
    config = experiment.config
    return (
        f"{'resuming' if start else 'training'} from step {start} to {config.train.steps}: "
        f"{parameters:,} parameters on {where} ({config.parallel.mode}, {layout})"
    )


def _diverged(what: str, step: int, checkpoints: Checkpoints) -> TrainingDiverged:
    checkpoints.wait()
    last = checkpoints.latest
    kept = "there is no checkpoint before it" if last is None else f"step {last} is kept"
    return TrainingDiverged(
        f"{what} at step {step}; {kept} in {checkpoints.directory}. Lower "
        "config.optimizer.learning_rate, or set config.optimizer.clip_norm"
    )


@jax.jit
def _all_finite(trees: tuple) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _finite(state: TrainState) -> bool:
    """Whether the state is worth keeping.

    A finite loss does not say so: it was computed before the update. The optimiser is left out, as
    some hold an infinity on purpose.
    """
    return bool(_all_finite((state.params, state.ema)))


def preview(experiment: Experiment, key: Key, mesh: Mesh) -> Callable[[TrainState], np.ndarray]:
    """A function that draws the same grid of samples from each state it is given.

    Labels cycle, a column per class when there are few. The system draws with the average that
    ``config.sample.ema`` names.

    Args:
        experiment: What is drawn from.
        key: Of the samples.
        mesh: The devices, which share the work.

    Returns:
        ``state -> image``, uint8 ``(height, width, channels)``.
    """
    config, classes = experiment.config, experiment.num_classes
    number = min(config.sample.number, PREVIEW_SIZE)
    columns = images.class_columns(number, classes)
    if columns:
        number -= number % columns
    # Some more, so that all devices draw the same number.
    index = np.arange(-(-number // mesh.size) * mesh.size)
    labels = (index % classes).astype(np.int32) if classes else None
    low_res = None
    if config.data.low_res:  # an upsampler is shown training images, whatever their classes
        small, own = upsampling.shrunk(experiment.source, config.data.low_res, number)
        rows, columns = index % len(small), None
        low_res, labels = small[rows], own[rows] if classes else None
    draw, _ = sampling.compile_draw(experiment, mesh, config.sample.guidance)

    def grid(state: TrainState) -> np.ndarray:
        drawn = draw(state, key, index, labels, low_res)[:number]
        return images.contact_sheet(upsampling.beside(low_res, drawn), columns)

    return grid


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], BaseException | None]]:
    """Catches the first SIGTERM and SIGINT inside; a second acts as it did before.

    Yields:
        ``step -> None``, or the exception to end with, once a signal came. Several hosts agree on
        the step through JAX's coordination service, which watches SIGTERM by itself.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: SystemExit(0) if reached(step) else None
        return
    received: list[int] = []
    previous = {}

    def handle(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handle)

    def stopped(step: int) -> BaseException | None:
        if not received:
            return None
        return SystemExit(0) if received[0] == signal.SIGTERM else KeyboardInterrupt()

    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
