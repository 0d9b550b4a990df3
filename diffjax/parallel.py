"""Where a run lives: the mesh of devices, what is sharded over it, and the compiled update.

Two modes train the same parameters:

* ``sharding``: one ``jit`` over a mesh with axes ``(data, fsdp)``. Batches are split over both,
  state is copied along ``data`` and split along ``fsdp`` (Zhao et al. 2023): ``fsdp = 1`` is plain
  data parallelism, larger values divide the memory of parameters, averages and optimiser.
* ``pmap``: one program per device, gradients averaged over the axis ``AXIS``; state is replicated.

In both, state keeps its shapes: a checkpoint of one mode and mesh is a checkpoint of all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from diffjax.state import TrainState
from diffjax.systems import Batch, Metrics, System

__all__ = [
    "AXIS",
    "MODES",
    "batch_sharding",
    "compile_update",
    "make_mesh",
    "place_batch",
    "sampling_mesh",
    "state_sharding",
]

MODES = ("sharding", "pmap")
AXIS = "batch"  # the mapped axis of pmap

# Smaller arrays are replicated: gathering them would cost more time than the memory is worth.
MIN_SHARDED_SIZE = 2**14


def make_mesh(
    mode: str = "sharding", fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The devices as a mesh with axes ``(data, fsdp)``.

    Args:
        mode: One of ``MODES``.
        fsdp: Devices that share one copy of the state; 1 replicates it. Always 1 under ``pmap``.
        devices: What to use; all devices of all hosts when None.

    Returns:
        The mesh. Devices keep their order, which lists one host after the other, so that the rows a
        host reads stay on its own devices.

    Raises:
        ValueError: The mode is unknown, or ``fsdp`` does not fit it or the devices.
    """
    devices = jax.devices() if devices is None else devices
    if mode not in MODES:
        raise ValueError(f"unknown parallel mode {mode!r}: choose one of {', '.join(MODES)}")
    if mode == "pmap" and fsdp != 1:
        raise ValueError(f"pmap replicates the state, so fsdp must be 1, not {fsdp}")
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp={fsdp} must divide the number of devices, {len(devices)}")
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def sampling_mesh(fsdp: int = 1) -> Mesh:
    """The mesh that draws from a run trained with ``fsdp``, perhaps on other devices.

    As many devices share the state as did in training, or as do divide the devices that are here.
    """
    return make_mesh("sharding", math.gcd(fsdp, jax.device_count()))


def state_sharding(state: Any, mesh: Mesh, min_size: int = MIN_SHARDED_SIZE) -> Any:
    """A sharding for each array: the largest divisible dimension of a big one goes over ``fsdp``.

    The rule looks at shapes alone, so an average or a moment lies where its parameter lies.

    Args:
        state: A tree of arrays or of their shapes.
        mesh: From :func:`make_mesh`.
        min_size: Arrays with fewer elements are replicated.

    Returns:
        A tree of ``NamedSharding``.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        divisible = [(size, axis) for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible or math.prod(leaf.shape) < min_size:
            return NamedSharding(mesh, PartitionSpec())
        _, axis = max(divisible)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(rule, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices, along both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, mode: str = "sharding") -> Batch:
    """Puts this host's rows of a batch on its devices.

    Args:
        batch: Arrays ``(rows, ...)``, with the rows of this host.
        mesh: From :func:`make_mesh`.
        mode: One of ``MODES``.

    Returns:
        Global arrays ``(all rows, ...)``; under ``pmap`` ``(all devices, rows of each, ...)``.
    """
    sharding = batch_sharding(mesh)
    if mode == "pmap":
        local = mesh.local_mesh.size
        batch = {key: leaf.reshape(local, -1, *leaf.shape[1:]) for key, leaf in batch.items()}
    return {
        key: jax.make_array_from_process_local_data(sharding, leaf) for key, leaf in batch.items()
    }


def compile_update(
    system: System, state: TrainState, batch: Batch, mesh: Mesh, mode: str = "sharding"
) -> Compiled:
    """The system's update, compiled for many devices.

    Update ``s`` draws from ``fold_in(state.key, s)``. The state passed in is donated: its memory
    becomes the new state's.

    Args:
        system: Built with ``axis=AXIS`` under ``pmap``, else with ``axis=None``.
        state: The state, or its shapes, with the shardings that it is to keep.
        batch: A batch, or its shapes, as :func:`place_batch` gives it.
        mesh: From :func:`make_mesh`.
        mode: One of ``MODES``.

    Returns:
        ``(state, batch) -> (state, metrics)``; metrics are scalars that every host can read. Its
        ``memory_analysis()`` and ``cost_analysis()`` say what it takes.

    Raises:
        ValueError: The system was built for the other mode.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return system.update(state, batch, jax.random.fold_in(state.key, state.step))

    if mode == "pmap":
        if _works_without_axis(update, state, batch):
            raise ValueError(
                f"under pmap the system must be built with axis={AXIS!r}: as it is, every device "
                "would go its own way"
            )
        mapped = jax.pmap(
            update,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )
        return mapped.lower(state, batch).compile()

    def sharded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for states.gather
            return update(state, batch)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(sharded, out_shardings=(shardings, replicated), donate_argnums=0)
    try:
        return jitted.lower(state, batch).compile()
    except NameError as error:  # JAX's answer to an axis that is not mapped
        raise ValueError(f"in mode 'sharding' build the system with axis=None: {error}") from error


def _works_without_axis(update: Callable, state: TrainState, batch: Batch) -> bool:
    """Whether the update of one device asks for nothing of the others."""
    rows = {key: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for key, leaf in batch.items()}
    try:
        jax.eval_shape(update, state, rows)
    except NameError:
        return False
    return True
