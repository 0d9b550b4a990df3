"""Checkpoints: everything a run needs to go on, written behind its back, checked when read.

A checkpoint is ``workdir/checkpoints/<step>``, written by orbax: plain arrays with the names of the
state's leaves, and a manifest of their types and checksums. Orbax writes under another name and
renames at the end, so a run killed at any moment leaves whole checkpoints only. What a disk or a
crash of the machine damages later is found by the checksums, and the checkpoint before is used.

Position in the data needs no entry of its own: batch ``s`` is a function of seed and step.
"""

import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from diffjax.state import TrainState
from diffjax.typing import Array

__all__ = ["FORMAT", "Checkpoints", "Mismatch", "checksum", "restore_for_sampling"]

FORMAT = 1  # version of the layout on disk
DIRECTORY = "checkpoints"

Named = dict[str, Any]  # the leaves of a state by name: 'params.in.kernel', 'ema.0.999.in.kernel'


class Mismatch(ValueError):
    """A checkpoint that is whole, but of another experiment or another version."""


class Checkpoints:
    """The checkpoints of one run; a context manager, which waits for the last write.

    Args:
        workdir: The run's directory; checkpoints go to ``checkpoints/`` in it.
        keep_last: How many of the newest are kept.
        keep_every: Those of every n-th step are kept for good; 0 for none.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_last: int = 2, keep_every: int = 0):
        self.directory = pathlib.Path(workdir).resolve() / DIRECTORY
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, the one being written included; None without any."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts to write the state; returns once its arrays are copied, so it may be donated.

        Failures of the write before surface here. A step already saved is not written again.
        """
        step = int(state.step)
        if step == self.latest:
            return
        arrays = _raw(_named(state))
        manifest = {
            "format": FORMAT,
            "types": _types(_named(state)),
            "checksums": {name: int(value) for name, value in _checksums(arrays).items()},
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeSave(arrays), manifest=ocp.args.JsonSave(manifest)
            ),
        )

    def wait(self) -> None:
        """Returns when the last checkpoint is complete on disk."""
        self._manager.wait_until_finished()

    def restore_latest(self, shapes: TrainState) -> TrainState | None:
        """The newest state that is whole, or None when there is no checkpoint.

        Damaged checkpoints are skipped with a warning and renamed to ``<step>.damaged``, so that
        the run can write these steps again.

        Args:
            shapes: The state as ``ShapeDtypeStruct``, with the shardings it is to have: those of
                the mesh at hand, whatever mesh the checkpoint was written from.

        Raises:
            Mismatch: The checkpoint holds another state.
            ValueError: There are checkpoints, but none is whole.
        """
        named = _named(shapes)
        restored, damaged = _restore_newest(self._manager, self.directory, named)
        if damaged:
            self._set_aside(damaged)
        return None if restored is None else _rebuilt(shapes, restored)

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                os.replace(self.directory / f"{step}", self._unused(f"{step}.damaged"))
        multihost_utils.sync_global_devices("diffjax: damaged checkpoints are set aside")
        self._manager.reload()

    def _unused(self, name: str) -> pathlib.Path:
        taken = len(list(self.directory.glob(f"{name}*")))
        return self.directory / (f"{name}.{taken}" if taken else name)


def restore_for_sampling(workdir: str | os.PathLike, shapes: TrainState) -> TrainState:
    """The newest state of a run without its optimiser's (``opt_state`` is ``()``); changes nothing.

    Args:
        workdir: The run's directory.
        shapes: The state as ``ShapeDtypeStruct``, with or without shardings; without, the arrays go
            to the first device.

    Raises:
        Mismatch: The checkpoint holds another state.
        ValueError: There is no checkpoint, or none is whole.
    """
    directory = pathlib.Path(workdir).resolve() / DIRECTORY
    shapes = shapes.replace(opt_state=())
    restored = None
    if directory.is_dir():
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(directory, options=options) as manager:
            restored, _ = _restore_newest(manager, directory, _named(shapes))
    if restored is None:
        raise ValueError(f"no checkpoint in {directory}: train first, or give another workdir")
    return _rebuilt(shapes, restored)


def _restore_newest(
    manager: ocp.CheckpointManager, directory: pathlib.Path, wanted: Named
) -> tuple[Named | None, list[int]]:
    """The newest whole checkpoint, and the steps of the damaged ones that are newer."""
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        restored, problem = None, ""
        try:
            restored = _restore(manager, step, wanted)
        except Mismatch as error:
            raise Mismatch(f"checkpoint {directory / str(step)}: {error}") from error
        except Exception as error:  # each kind of damage fails in a way of its own
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        # All hosts use the same one, also when only some of them cannot read it.
        if np.all(multihost_utils.process_allgather(np.asarray(restored is not None))):
            return restored, damaged
        logging.warning(
            "CHECKPOINT SKIPPED: %s is damaged (%s)",
            directory / str(step),
            problem or "on another host",
        )
        damaged.append(step)
    if damaged:
        raise ValueError(
            f"none of the checkpoints in {directory} can be read; see the warnings above, and move "
            "the directory away to start from scratch"
        )
    return None, []


def _restore(manager: ocp.CheckpointManager, step: int, wanted: Named) -> Named:
    """Reads the wanted leaves of one checkpoint and compares their checksums."""
    read = manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))
    manifest = read.manifest
    if manifest["format"] != FORMAT:
        raise Mismatch(f"format {manifest['format']}; this version reads format {FORMAT}")
    _check_types(manifest["types"], _types(wanted))
    shapes = _raw(wanted)
    read = manager.restore(
        step,
        args=ocp.args.Composite(
            arrays=ocp.args.PyTreeRestore(
                item=shapes,
                restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
                partial_restore=True,
            )
        ),
    )
    for name, value in _checksums(read.arrays).items():
        if int(value) != manifest["checksums"][name]:
            raise OSError(f"the checksum of {name} is wrong")
    return read.arrays


def _check_types(stored: dict[str, str], wanted: dict[str, str]) -> None:
    """Compares names, types and shapes.

    Raises:
        Mismatch: Something wanted is not there or another; names the first few.
    """
    different = [
        f"{name} is {stored.get(name, 'missing')}, not {kind}"
        for name, kind in wanted.items()
        if stored.get(name) != kind
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise Mismatch(f"it holds another state: {'; '.join(different[:3])}{more}")


def _named(state: Any) -> Named:
    leaves = jax.tree.flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _types(named: Named) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(named: Named) -> Named:
    """Leaves, or shapes of leaves, as what is stored: typed keys become their data."""

    def raw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.random.key_data(leaf) if _is_key(leaf) else leaf
        sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)

    return {name: raw(leaf) for name, leaf in named.items()}


def _rebuilt(shapes: TrainState, raw: Named) -> TrainState:
    """The state of these shapes from what :func:`_raw` made of it."""

    def leaf(name: str, shape: jax.ShapeDtypeStruct) -> Array:
        if not _is_key(shape):
            return raw[name]
        impl = jax.random.key_impl(jnp.empty((), shape.dtype))
        return jax.random.wrap_key_data(raw[name], impl=impl)

    leaves = [leaf(name, shape) for name, shape in _named(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def checksum(x: Array) -> Array:
    r"""A sum of an array's bits that any one changed element changes, on any number of devices.

    .. math:: \sum_i (2 i + 1)\, b_i \mod 2^{32}

    Weights are odd, so a change of one ``b_i`` cannot vanish; integers wrap, so the order of
    summation does not matter, and an array may be sharded in any way.

    Args:
        x: Numbers or booleans, any shape.

    Returns:
        uint32 ``()``.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # 64 bits: a last axis of 2
    weights = jnp.ones((), jnp.uint32)
    for axis, stride in enumerate(_strides(bits.shape)):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        weights = weights + along * jnp.uint32(2 * stride % 2**32)
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


@jax.jit
def _all_checksums(arrays: list[Array]) -> Array:
    return jnp.stack([checksum(array) for array in arrays])


def _checksums(arrays: Named) -> dict[str, np.uint32]:
    """All checksums, fetched at once."""
    return dict(zip(arrays, np.asarray(_all_checksums(list(arrays.values()))), strict=True))
