"""The system contract: what is trained, and how it draws samples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax import state as states
from diffjax.losses import Slots
from diffjax.state import TrainState
from diffjax.typing import Array, Key

__all__ = ["Batch", "Metrics", "Request", "Samples", "System", "gradient_update"]

Batch = dict[str, Array]  # 'image' (n, H, W, C) uint8, 'label' (n,) int32
Metrics = dict[str, Array]
Loss = Callable[[Any, Batch, Slots, Key], tuple[Array, Metrics]]


class Request(NamedTuple):
    """What to draw.

    Attributes:
        index: Global numbers of the samples, ``(n,)``. Sample ``i`` of a seed is the same picture
            whatever batch it is drawn in.
        labels: Classes asked for, ``(n,)`` int32, or None for an unconditional system.
        guidance: Guidance scale, ``()`` or ``(n,)``; 1 is plain conditional sampling.
        low_res: Small images to enlarge, ``(n, height, width, C)`` in [-1, 1]; None for a system
            that is no upsampler.
        chains: Where a sampler by chains goes on, from earlier ``Samples``; None to begin.
    """

    index: Array
    labels: Array | None = None
    guidance: Array | float = 1.0
    low_res: Array | None = None
    chains: Any = None


class Samples(NamedTuple):
    """What was drawn.

    Attributes:
        images: Shape ``(n, H, W, C)``, nominally in [-1, 1].
        labels: The labels asked for, ``(n,)``, or None.
        nfe: Network evaluations per sample.
        chains: Where a sampler by chains stands; None for others, whose samples stand alone.
    """

    images: Array
    labels: Array | None
    nfe: int
    chains: Any = None


class System(NamedTuple):
    """What is trained, and how it draws samples; four pure functions.

    Attributes:
        init: ``(key, batch) -> state``; the batch is an example of shapes and types.
        update: ``(state, batch, key) -> (state, metrics)``: one optimisation step, jitted and
            sharded by the training loop. ``metrics['loss']`` is what the loop guards.
        sample: ``(state, key, request) -> Samples``; sample ``i`` depends on ``(key, index[i])``.
            None for a system that draws none, such as a judge of images.
        evaluate: What only this system measures, or None: ``(state, batch, key) -> report`` on all
            images held out, numbers or lists of numbers by name.
        conditional: Whether it uses labels.
        measure: What ``config.evaluate.likelihood`` asks for, or None: ``(state, images, labels,
            keys, levels) -> {name: (n,) or ()}`` of uint8 images with that number of grey levels
            and a key each.
    """

    init: Callable[[Key, Batch], TrainState]
    update: Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]
    sample: Callable[[TrainState, Key, Request], Samples] | None
    evaluate: Callable[[TrainState, Batch, Key], dict] | None = None
    conditional: bool = False
    measure: Callable[..., dict[str, Array]] | None = None


def gradient_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    ema_warmup: bool = True,
    axis: str | None = None,
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]:
    """The ``update`` of a system that descends one loss.

    Args:
        loss: ``(params, batch, slots, key) -> (mean loss, metrics)``. Draws that differ by row must
            come from ``slots.keys(...)``, so that they do not depend on how the batch is split. All
            parts of a batch get the same key: draws for the rows at hand together, such as dropout
            masks, should fold in ``slots.index[0]``.
        optimizer: Turns gradients into updates.
        microbatches: Parts the batch is worked off in, one after another, to save memory; the
            gradient is the mean of theirs, which is that of the whole batch.
        ema_warmup: Whether the averages warm up (see :func:`diffjax.state.ema_decay`).
        axis: Name of the mapped axis under ``pmap``; None under ``jit``, where batches are global.

    Returns:
        ``update(state, batch, key)``; the metrics are the loss's own and ``loss``, ``grad_norm``,
        ``ema_distance`` (relative distance of the slowest average from the parameters).
    """

    @functools.partial(jax.value_and_grad, has_aux=True)
    def value_and_grad(params, batch: Batch, slots: Slots, key: Key):
        return loss(states.gather(params), batch, slots, key)

    def gradients(params, batch: Batch, slots: Slots, key: Key):
        if microbatches == 1:
            return value_and_grad(params, batch, slots, key)

        def split(leaf: Array) -> Array:
            # Strided, so that each device of a sharded batch keeps its own rows.
            return leaf.reshape(-1, microbatches, *leaf.shape[1:]).swapaxes(0, 1)

        def part(batch, index):
            return value_and_grad(params, batch, Slots(index, slots.total), key)

        scanned = (jax.tree.map(split, batch), split(slots.index))
        shapes = jax.eval_shape(part, *jax.tree.map(lambda leaf: leaf[0], scanned))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(total, scanned):
            return jax.tree.map(jnp.add, total, part(*scanned)), None

        total, _ = jax.lax.scan(body, zeros, scanned)
        return jax.tree.map(lambda leaf: leaf / microbatches, total)

    def update(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        if rows % microbatches:
            raise ValueError(
                f"a batch of {rows} rows cannot be split in {microbatches} microbatches"
            )
        index, total = jnp.arange(rows), rows
        if axis is not None:
            index = index + jax.lax.axis_index(axis) * rows
            total = rows * jax.lax.axis_size(axis)
        (value, metrics), grads = gradients(state.params, batch, Slots(index, total), key)
        if axis is not None:
            value, metrics, grads = jax.lax.pmean((value, metrics, grads), axis)
        new = states.update(state, grads, optimizer, ema_warmup)
        metrics = {**metrics, "loss": value, "grad_norm": optax.tree.norm(grads)}
        if new.ema:
            slowest = new.ema[max(new.ema, key=float)]
            apart = optax.tree.norm(optax.tree.sub(slowest, new.params))
            metrics["ema_distance"] = apart / optax.tree.norm(new.params)
        return new, metrics

    return update
